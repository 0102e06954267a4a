//! The io_uring engine: one ring per worker, all requests at hand in one system call.
//!
//! Making a ring takes about 20 us. When, and what it may be asked for, is in
//! [`rings`](crate::virtio::block::rings). The worker polls the ring's descriptor.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use crate::virtio::block::file::{DiskFile, Op, fallocate_mode, write_flags};
use crate::virtio::block::image::MAX_FILES;
use crate::virtio::block::slots::Slots;

/// How often a submission is tried while the kernel lacks resources.
const RETRIES: usize = 10_000;

/// `IORING_REGISTER_FILES_UPDATE` (Linux `include/uapi/linux/io_uring.h`).
const FILES_UPDATE: u8 = 6;

/// No file in this place of a table.
const NO_FILE: RawFd = -1;

/// A ring for the requests of one worker.
pub(in crate::virtio::block) struct Ring(IoUring);

impl fmt::Debug for Ring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Ring({})", self.0.as_raw_fd())
    }
}

impl Ring {
    /// A ring with room for `entries` requests, on no files yet.
    pub(in crate::virtio::block) fn new(entries: u16) -> io::Result<Self> {
        let entries = u32::from(entries);
        let disabled = || {
            let mut builder = IoUring::builder();
            builder.setup_r_disabled();
            builder
        };
        // Completions need no interprocessor interrupt to get noticed, as the worker sleeps in the
        // kernel if it has nothing to do (Linux 5.19).
        let ring: IoUring = match disabled().setup_coop_taskrun().build(entries) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                disabled().build(entries)?
            }
            result => result?,
        };
        let submitter = ring.submitter();
        submitter.register_files(&[NO_FILE; MAX_FILES])?;
        // Linux 5.10; a kernel that cannot restrict rings gets none.
        submitter.register_restrictions(&mut restrictions())?;
        submitter.register_enable_rings()?;
        Ok(Self(ring))
    }

    /// Lets requests name these files, and no others, by their numbers.
    pub(in crate::virtio::block) fn use_files(&self, files: &[DiskFile]) -> io::Result<()> {
        let mut table = [NO_FILE; MAX_FILES];
        if files.len() > table.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (place, file) in table.iter_mut().zip(files) {
            *place = file.file().as_raw_fd();
        }
        let submitter = self.0.submitter();
        submitter.register_files_update(0, &table).map(drop)
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

/// All that a ring may be asked for.
fn restrictions() -> [Restriction; 6] {
    [
        Restriction::sqe_op(opcode::Readv::CODE),
        Restriction::sqe_op(opcode::Writev::CODE),
        Restriction::sqe_op(opcode::Fsync::CODE),
        Restriction::sqe_op(opcode::Fallocate::CODE),
        Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()),
        Restriction::register_op(FILES_UPDATE),
    ]
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

#[cfg(test)]
mod tests {
    use std::ptr;

    use io_uring::types::Fd;

    use super::*;

    /// What a ring answers to an entry.
    fn ask(ring: &mut Ring, entry: &squeue::Entry) -> i32 {
        // SAFETY: the entry's pointers are null or point to what outlives the call, which waits.
        unsafe { ring.0.submission().push(entry) }.expect("room");
        ring.submit(1).expect("submitted");
        ring.complete().expect("an answer").1
    }

    /// What system call filters forbid cannot be had from a ring instead.
    #[test]
    fn a_ring_does_nothing_but_transfers_on_its_files() {
        let mut ring = Ring::new(8).expect("io_uring");
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        let fd = Fd(null.as_raw_fd());
        let (root, mut byte) = (c"/", [0_u8]);
        let iovec = libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        let cwd = Fd(libc::AT_FDCWD);
        let forbidden = [
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_DGRAM, 0).build(),
            opcode::Socket::new(libc::AF_NETLINK, libc::SOCK_RAW, 0).build(),
            opcode::Connect::new(fd, ptr::null(), 0).build(),
            opcode::Accept::new(fd, ptr::null_mut(), ptr::null_mut()).build(),
            opcode::Send::new(fd, byte.as_ptr(), 1).build(),
            opcode::SendMsg::new(fd, ptr::null()).build(),
            opcode::OpenAt::new(cwd, root.as_ptr()).build(),
            opcode::Statx::new(cwd, root.as_ptr(), ptr::null_mut()).build(),
            opcode::UnlinkAt::new(cwd, root.as_ptr()).build(),
            opcode::Close::new(fd).build(),
            opcode::Nop::new().build(),
            // What is allowed, on a file that is not in the table, and with a flag more.
            opcode::Readv::new(fd, &raw const iovec, 1).build(),
            opcode::Readv::new(Fixed(0), &raw const iovec, 1)
                .build()
                .flags(squeue::Flags::ASYNC),
        ];
        for entry in &forbidden {
            assert_eq!(ask(&mut ring, entry), -libc::EACCES, "{entry:?}");
        }
        let allowed = opcode::Readv::new(Fixed(0), &raw const iovec, 1).build();
        assert_eq!(ask(&mut ring, &allowed), -libc::EBADF, "no file yet");
        let file = DiskFile::settle(null, 512, &std::sync::Arc::default()).expect("a file");
        ring.use_files(&[file]).expect("the table takes it");
        assert_eq!(ask(&mut ring, &allowed), 0, "/dev/null is empty");
        ring.use_files(&[]).expect("the table takes nothing");
        assert_eq!(ask(&mut ring, &allowed), -libc::EBADF, "no file any more");
        let refused = ring.0.submitter().register_eventfd(fd.0);
        let refused = refused.expect_err("not allowed").raw_os_error();
        assert_eq!(refused, Some(libc::EACCES));
    }
}
