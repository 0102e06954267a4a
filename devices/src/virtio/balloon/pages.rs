//! Pages of guest RAM on their way back to the host.

use libc::iovec;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::GuestMemory;

/// Unit of the page numbers, bytes (5.5.6).
pub(super) const UNIT: u64 = 4096;

/// Page `number` of guest RAM; `None` if it is not there.
pub(super) fn page(memory: &GuestMemory, number: u32) -> Option<iovec> {
    let address = GuestAddress(u64::from(number) * UNIT);
    let slice = memory.get_slice(address, UNIT as usize).ok()?;
    Some(iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    })
}

/// Neighbouring pages, given back together: a call for each would be most of the work.
#[derive(Default)]
pub(super) struct Run {
    /// Nonempty parts of guest RAM that follow each other in this process, joined.
    pages: Option<iovec>,
    /// Bytes given back.
    bytes: u64,
}

impl Run {
    /// Adds a page above or below the others, or begins anew.
    pub(super) fn add(&mut self, page: iovec) {
        if let Some(pages) = &mut self.pages {
            if pages.iov_base.wrapping_byte_add(pages.iov_len) == page.iov_base {
                pages.iov_len += page.iov_len;
                return;
            }
            if page.iov_base.wrapping_byte_add(page.iov_len) == pages.iov_base {
                pages.iov_base = page.iov_base;
                pages.iov_len += page.iov_len;
                return;
            }
            self.bytes += give_back(pages);
        }
        self.pages = Some(page);
    }

    /// Gives the last ones back, too; the bytes of all.
    pub(super) fn end(mut self) -> u64 {
        self.bytes += self.pages.as_ref().map_or(0, give_back);
        self.bytes
    }
}

/// Gives the whole pages of a part of guest RAM back to the host; their bytes. Pages that the kernel
/// does not take back, as locked ones, stay.
pub(super) fn give_back(part: &iovec) -> u64 {
    let page = host_page();
    let skip = part.iov_base.align_offset(page).min(part.iov_len);
    let len = (part.iov_len - skip) / page * page;
    if len == 0 {
        return 0;
    }
    let start = part.iov_base.wrapping_byte_add(skip);
    // SAFETY: `start..start + len` is guest RAM, mapped while the queue lives, to which Rust holds no
    // reference and of whose contents it assumes nothing.
    match unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) } {
        0 => len as u64,
        _ => 0,
    }
}

/// Bytes of a page of the host.
fn host_page() -> usize {
    // SAFETY: asks for a number.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
