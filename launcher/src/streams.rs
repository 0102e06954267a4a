//! Streams that others have open, too, or that others hold up: nobody waits for them who is waited for.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use devices::at_once;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::supervise::Signals;

/// A signal ended what waited for a stream.
#[derive(Debug, Error)]
#[error("stopped by a signal")]
pub(crate) struct Stopped;

impl Stopped {
    /// Whether that is what became of a read or a write.
    pub(crate) fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|error| error.is::<Self>())
    }
}

/// A stream that is read or written until a signal wants the end; files are never waited for.
pub(crate) struct Patient<'a, T> {
    stream: T,
    is_file: bool,
    signals: &'a Signals,
}

impl<'a, T: AsFd> Patient<'a, T> {
    /// A stream and the signals.
    pub(crate) fn new(stream: T, signals: &'a Signals) -> Self {
        let is_file = at_once::is_file(stream.as_fd());
        Self {
            stream,
            is_file,
            signals,
        }
    }

    /// Does `now` as soon as it can be done.
    fn when(
        &self,
        flags: PollFlags,
        mut now: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        let stream = self.stream.as_fd();
        loop {
            match now(stream) {
                Err(Errno::AGAIN) => {}
                done => return Ok(done?),
            }
            let mut fds = [
                PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(stream, flags),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if self.signals.want_end() {
                return Err(io::Error::other(Stopped));
            }
        }
    }
}

impl<T: AsFd> Read for Patient<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.is_file {
            true => Ok(rustix::io::read(&self.stream, buffer)?),
            false => self.when(PollFlags::IN, |from| at_once::read(from, buffer)),
        }
    }
}

impl<T: AsFd> Write for Patient<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.is_file {
            true => Ok(rustix::io::write(&self.stream, bytes)?),
            false => self.when(PollFlags::OUT, |to| at_once::write(to, bytes)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A pipe or a terminal opened anew: an open file description that nobody shares, on which no read or write waits,
/// whatever the kernel. Refused to who does not own the pipe; sockets cannot be opened.
pub(crate) fn own(stream: BorrowedFd<'_>, access: OFlags) -> rustix::io::Result<OwnedFd> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(stream)?.st_mode);
    if !matches!(kind, FileType::Fifo | FileType::CharacterDevice) {
        return Err(Errno::NXIO);
    }
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
    rustix::fs::open(path, flags, Mode::empty())
}
