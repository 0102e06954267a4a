//! The io_uring engine: one ring per worker, all requests at hand in one system call.
//!
//! Rings are made when the device is built, which takes about 20 us each, and outlive resets: no
//! thread of a running VM needs `io_uring_setup`. The worker polls the ring's descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use crate::virtio::block::file::{DiskFile, Op, fallocate_mode, write_flags};
use crate::virtio::block::slots::Slots;

/// How often a submission is tried while the kernel lacks resources.
const RETRIES: usize = 10_000;

/// A ring for the requests of one queue.
pub(in crate::virtio::block) struct Ring(IoUring);

impl Ring {
    /// A ring with room for `entries` requests on `files`.
    pub(in crate::virtio::block) fn new(entries: u16, files: &[DiskFile]) -> io::Result<Self> {
        let entries = u32::from(entries);
        // Completions need no interprocessor interrupt to get noticed, as the worker sleeps in the
        // kernel if it has nothing to do (Linux 5.19).
        let ring = match IoUring::builder().setup_coop_taskrun().build(entries) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(entries)?,
            result => result?,
        };
        let files: Vec<_> = files.iter().map(|file| file.file().as_raw_fd()).collect();
        ring.submitter().register_files(&files)?;
        Ok(Self(ring))
    }

    /// Readable when requests have completed.
    pub(in crate::virtio::block) fn fd(&self) -> BorrowedFd<'_> {
        let fd: RawFd = self.0.as_raw_fd();
        // SAFETY: the ring keeps its descriptor open for the lifetime of the borrow.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Queues the part that slot `index` has; [`Ring::submit`] hands it to the kernel.
    pub(super) fn push(&mut self, index: u16, slots: &Slots) -> io::Result<()> {
        let Some(entry) = entry(index, slots) else {
            return Ok(());
        };
        // SAFETY: the buffers lie in guest memory, and their iovecs in the slot's arena, which is
        // not moved or reused before the slot is finished; the handler drains the ring before it
        // drops the slots.
        let full = unsafe { self.0.submission().push(&entry) }.is_err();
        if full {
            // There is an entry per slot, so only resubmissions can get here.
            self.submit(0)?;
            // SAFETY: as above.
            unsafe { self.0.submission().push(&entry) }.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Hands everything queued to the kernel, and waits for `wanted` completions.
    pub(super) fn submit(&mut self, wanted: usize) -> io::Result<()> {
        for _ in 0..RETRIES {
            if wanted == 0 && self.0.submission().is_empty() {
                return Ok(());
            }
            match self.0.submit_and_wait(wanted) {
                Ok(_) if self.0.submission().is_empty() => return Ok(()),
                Ok(_) => {}
                // Too many completions wait to be taken: the caller takes them and comes again.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                Err(error) if is_transient(&error) => std::thread::yield_now(),
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Takes one completed part: its slot and its result.
    pub(super) fn complete(&mut self) -> Option<(u16, i32)> {
        let entry = self.0.completion().next()?;
        Some((entry.user_data() as u16, entry.result()))
    }

    /// Whether something is queued that the kernel has not seen.
    pub(super) fn has_queued(&mut self) -> bool {
        !self.0.submission().is_empty()
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

fn entry(index: u16, slots: &Slots) -> Option<squeue::Entry> {
    let (slot, part, buffers) = slots.part(index)?;
    let (file, offset) = (Fixed(part.file.into()), part.offset);
    let (iovecs, count) = (buffers.as_ptr(), buffers.len() as u32);
    let entry = match slot.op {
        Op::Read => opcode::Readv::new(file, iovecs, count)
            .offset(offset)
            .build(),
        Op::Write => opcode::Writev::new(file, iovecs, count)
            .offset(offset)
            .rw_flags(write_flags(slot.dsync))
            .build(),
        Op::Sync => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
        Op::Punch | Op::Zero => opcode::Fallocate::new(file, part.len)
            .offset(offset)
            .mode(fallocate_mode(slot.op))
            .build(),
    };
    Some(entry.user_data(u64::from(index)))
}
