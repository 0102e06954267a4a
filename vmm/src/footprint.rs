//! Gives back the pages of code that only the start needed.
//!
//! Most of what a process of ours occupies once its guest runs is its own file: parsers, the command
//! line, the machine's construction, mapped 64 KiB and more at each fault. The pages are clean copies of the
//! file, so nothing is lost: what is still needed comes back by a minor fault from the page cache.

use std::ffi::{c_int, c_void};

/// Unmaps this program's read-only pages until they are touched again.
pub fn release_start_code() {
    // SAFETY: the callback has the type that the call wants and keeps nothing that it is given.
    unsafe { libc::dl_iterate_phdr(Some(release), std::ptr::null_mut()) };
}

/// Called for each loaded object; a static program has one.
unsafe extern "C" fn release(info: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: libc passes a valid description for the time of the call.
    let info = unsafe { &*info };
    // SAFETY: libc says how many program headers there are; they stay mapped with the program.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    for header in headers {
        let is_read_only = header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
        if is_read_only {
            let (start, len) = pages(info.dlpi_addr + header.p_vaddr, header.p_memsz);
            // SAFETY: the range holds nothing but unwritten pages of a private mapping of a file,
            // which the kernel reads again when they are touched. A refusal changes nothing.
            unsafe { libc::madvise(start as *mut c_void, len, libc::MADV_DONTNEED) };
        }
    }
    0
}

/// The whole pages within a range: a page at its border may be another segment's too.
fn pages(start: u64, len: u64) -> (usize, usize) {
    const PAGE: u64 = 4096;
    let first = start.next_multiple_of(PAGE);
    let end = (start + len) / PAGE * PAGE;
    // An address of this process fits.
    (first as usize, end.saturating_sub(first) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_are_released() {
        assert_eq!(pages(0x1000, 0x2000), (0x1000, 0x2000));
        assert_eq!(pages(0x1800, 0x2000), (0x2000, 0x1000));
        assert_eq!(pages(0x1800, 0x100), (0x2000, 0));
    }

    #[test]
    fn the_program_goes_on() {
        release_start_code();
        assert_eq!("still here".len(), 10);
    }
}
