//! Reads and writes that do not wait, on descriptors whose flags are others', too: a pipe may be empty or full
//! again between a look at it and the call that follows.
//!
//! Each call says that it does not wait (`RWF_NOWAIT`). What does not know that (terminals; pipes and sockets
//! of kernels before 6.4) is asked first. Not for files: they say that they would wait for a disk.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2, retry_on_intr};

/// Where the file is, as `read` and `write` have it.
const HERE: u64 = u64::MAX;

/// Writes what there is room for, now; [`Errno::AGAIN`] if there is none.
pub fn write(to: BorrowedFd<'_>, bytes: &[u8]) -> rustix::io::Result<usize> {
    let write = || pwritev2(to, &[IoSlice::new(bytes)], HERE, ReadWriteFlags::NOWAIT);
    match retry_on_intr(write) {
        Err(Errno::OPNOTSUPP) if is_ready(to, PollFlags::OUT, Duration::ZERO) => {
            retry_on_intr(|| rustix::io::write(to, bytes))
        }
        Err(Errno::OPNOTSUPP) => Err(Errno::AGAIN),
        written => written,
    }
}

/// Reads what is there, now; [`Errno::AGAIN`] if there is nothing.
pub fn read(from: BorrowedFd<'_>, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    let flags = ReadWriteFlags::NOWAIT;
    let mut read = || preadv2(from, &mut [IoSliceMut::new(buffer)], HERE, flags);
    match retry_on_intr(&mut read) {
        Err(Errno::OPNOTSUPP) if is_ready(from, PollFlags::IN, Duration::ZERO) => {
            retry_on_intr(|| rustix::io::read(from, &mut *buffer))
        }
        Err(Errno::OPNOTSUPP) => Err(Errno::AGAIN),
        read => read,
    }
}

/// Whether it is ready before `timeout` is over. Errors and hang-ups count: the call that follows tells.
pub fn is_ready(fd: BorrowedFd<'_>, flags: PollFlags, timeout: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: timeout.as_secs().cast_signed(),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// Whether it is a file or a block device, which take and give everything.
pub fn is_file(fd: BorrowedFd<'_>) -> bool {
    let stat = rustix::fs::fstat(fd);
    stat.is_ok_and(|stat| {
        let kind = FileType::from_raw_mode(stat.st_mode);
        matches!(kind, FileType::RegularFile | FileType::BlockDevice)
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::thread;

    use super::*;

    /// Many write at the same time, and find room that another takes before them.
    #[test]
    fn a_shared_pipe_holds_no_writer_up() {
        let (ours, theirs) = io::pipe().expect("a pipe");
        let (stream, other) = UnixStream::pair().expect("sockets");
        let (datagram, another) = UnixDatagram::pair().expect("sockets");
        for to in [theirs.as_fd(), stream.as_fd(), datagram.as_fd()] {
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| while write(to, &[b'x'; 4096]).is_ok() {});
                }
            });
            assert_eq!(write(to, &[b'x'; 4096]), Err(Errno::AGAIN));
        }
        drop((ours, other, another));
    }

    /// Many read what one writes.
    #[test]
    fn a_shared_pipe_holds_no_reader_up() {
        let (ours, theirs) = io::pipe().expect("a pipe");
        let from = ours.as_fd();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while read(from, &mut [0; 16]) != Ok(0) {
                        thread::yield_now();
                    }
                });
            }
            for _ in 0..10_000 {
                write(theirs.as_fd(), &[b'x'; 16]).expect("room");
                thread::yield_now();
            }
            drop(theirs);
        });
    }
}
