//! A packet on its way out.
//!
//! The guest can change its memory while we look at it, so what is looked at is copied first, and it
//! is the copy that is sent: what a rule has seen is what leaves. The rest of the packet is never
//! looked at and goes from guest memory to the kernel.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::iovec;

use super::stream::PREFIX;
use crate::tap::HEADER_SIZE;
use crate::virtio::chain::Chain;

/// Bytes of a frame that decide about nearly all of them: Ethernet, a VLAN tag, IPv4 with all
/// options or IPv6, ports; also an ARP packet.
pub(crate) const PEEK: usize = 96;

/// Most bytes of a frame that are ever looked at: a DHCP request, or a long chain of headers.
pub(crate) const MAX_LOOK: usize = 1514;

/// Where the part of the head begins that a stream gets.
const STREAM_START: usize = HEADER_SIZE - PREFIX;

/// The packet being sent. Storage is made once.
pub(super) struct Outgoing {
    /// Copy of the virtio header and the frame's start.
    head: Box<[u8; HEADER_SIZE + MAX_LOOK]>,
    copied: usize,
    iovecs: Vec<iovec>,
}

// SAFETY: `iovecs` is filled for each system call and emptied after it; between calls, which is when
// the value can be moved to another thread, it holds no pointer.
unsafe impl Send for Outgoing {}

impl Outgoing {
    /// Room for chains of up to `descriptors` buffers.
    pub(super) fn new(descriptors: usize) -> Self {
        Self {
            head: Box::new([0; HEADER_SIZE + MAX_LOOK]),
            copied: 0,
            iovecs: Vec::with_capacity(descriptors + 1),
        }
    }

    /// Begins with the packet in `chain`, of which [`PEEK`] bytes are copied.
    pub(super) fn load(&mut self, chain: &Chain) {
        self.copied = chain.read_at(0, &mut self.head[..HEADER_SIZE + PEEK]);
    }

    /// Copies up to [`MAX_LOOK`] bytes; those that were copied before stay as they are.
    pub(super) fn load_more(&mut self, chain: &Chain) {
        let from = self.copied;
        self.copied += chain.read_at(from as u32, &mut self.head[from..]);
    }

    /// The virtio header.
    pub(super) fn header(&self) -> &[u8; HEADER_SIZE] {
        // A packet is at least a header; otherwise these are bytes of an earlier one.
        self.head.first_chunk().expect("the array is longer")
    }

    /// What is copied of the frame.
    pub(super) fn frame(&self) -> &[u8] {
        self.head.get(HEADER_SIZE..self.copied).unwrap_or_default()
    }

    /// Copies the frame as it leaves: what was copied of it, and the rest of the packet.
    pub(super) fn copy_frame(&self, chain: &Chain, to: &mut [u8]) {
        let head = self.frame();
        let head = &head[..head.len().min(to.len())];
        let (to_head, to_tail) = to.split_at_mut(head.len());
        to_head.copy_from_slice(head);
        chain.read_at(self.copied as u32, to_tail);
    }

    /// Writes header and frame to a TAP, which takes all of it or nothing.
    pub(super) fn write_to_tap(&mut self, tap: &File, chain: &Chain) -> io::Result<()> {
        self.write(tap, chain, 0).map(drop)
    }

    /// Writes frame and length to a stream. Returns the number of bytes written, of [`PREFIX`] and
    /// the frame's `len`.
    pub(super) fn write_to_stream(
        &mut self,
        socket: &File,
        chain: &Chain,
        len: usize,
    ) -> io::Result<usize> {
        // The stream has no virtio header; the length goes to its end, before the frame.
        let prefix = &mut self.head[STREAM_START..HEADER_SIZE];
        prefix.copy_from_slice(&(len as u32).to_be_bytes());
        self.write(socket, chain, STREAM_START)
    }

    /// Copies what [`Outgoing::write_to_stream`] left after `written` bytes into `rest`; its length.
    pub(super) fn copy_rest(&self, chain: &Chain, written: usize, rest: &mut [u8]) -> usize {
        let from = STREAM_START + written;
        let head = self.head[..self.copied].get(from..).unwrap_or_default();
        let (to_head, to_tail) = rest.split_at_mut(head.len());
        to_head.copy_from_slice(head);
        head.len() + chain.read_at(from.max(self.copied) as u32, to_tail)
    }

    /// One `writev` of the copy from `from` on and the rest of the packet.
    fn write(&mut self, file: &File, chain: &Chain, from: usize) -> io::Result<usize> {
        let head = &mut self.head[from..self.copied];
        self.iovecs.push(iovec {
            iov_base: head.as_mut_ptr().cast(),
            iov_len: head.len(),
        });
        let mut skip = self.copied;
        for buffer in chain.readable() {
            let skipped = skip.min(buffer.iov_len);
            skip -= skipped;
            if skipped < buffer.iov_len {
                self.iovecs.push(iovec {
                    iov_base: buffer.iov_base.wrapping_byte_add(skipped),
                    iov_len: buffer.iov_len - skipped,
                });
            }
        }
        let count = self.iovecs.len() as libc::c_int;
        // SAFETY: the first iovec is the copy, the others are ranges of guest memory, which `chain`
        // keeps mapped, shortened at their front; the call only reads them, once.
        let written = unsafe { libc::writev(file.as_raw_fd(), self.iovecs.as_ptr(), count) };
        self.iovecs.clear();
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }
}
