//! Standard error as the log writes to it: never waited for, never fatal. What cannot be written is counted,
//! and the count is written when writing works again.
//!
//! A pipe or a terminal is opened anew, which gives this process (and its fork) an open file description of its
//! own that may be made non-blocking; the one it inherited belongs to others, too. Where that is refused, as for a
//! container's user who does not own the pipe, and for sockets, which cannot be opened, each write says that it does
//! not wait. Kernels before 6.4 do not know that of pipes: they are asked for room first, which another process may
//! take in between. Files take everything.

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use tracing_subscriber::fmt::MakeWriter;

use super::LogFormat;

/// Most bytes that a pipe takes at once, whole or not at all, if it takes any (pipe(7)).
const PIPE_BUF: usize = 4096;

/// For `pwritev2`: where the file is, as `write` has it.
const HERE: u64 = u64::MAX;

/// What has not been written, messages.
static LOST: AtomicU64 = AtomicU64::new(0);

static STREAM: OnceLock<Stream> = OnceLock::new();

/// How standard error is written to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stream {
    /// It is shared with others, who let writes wait.
    is_shared: bool,
    json: bool,
}

impl Stream {
    /// Makes standard error fit for what follows.
    pub(super) fn open(format: LogFormat) -> Self {
        let stream = Self {
            is_shared: may_block() && reopen().is_err(),
            json: format == LogFormat::Json,
        };
        *STREAM.get_or_init(|| stream)
    }

    /// Writes a message, and how many were lost before it.
    fn put(self, message: &[u8]) {
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 && !self.try_put(self.notice(lost).as_bytes()) {
            LOST.fetch_add(lost + 1, Ordering::Relaxed);
            return;
        }
        if !self.try_put(message) {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn notice(self, lost: u64) -> String {
        let text = format!("{lost} messages are lost: nobody read the log");
        match self.json {
            true => format!("{{\"level\":\"WARN\",\"fields\":{{\"message\":\"{text}\"}}}}\n"),
            false => format!("podvisor: {text}\n"),
        }
    }

    fn try_put(self, mut rest: &[u8]) -> bool {
        let stderr = io::stderr();
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(PIPE_BUF)];
            let written = match self.is_shared {
                true => write_at_once(stderr.as_fd(), chunk),
                false => rustix::io::write(&stderr, chunk),
            };
            match written {
                Ok(0) => return false,
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// A writer that takes each message whole.
impl Write for Stream {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        self.put(message);
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Stream {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

/// Writes one line, as the log does.
pub(crate) fn line(text: &str) {
    let stream = STREAM.get().copied().unwrap_or_default();
    stream.put(format!("{text}\n").as_bytes());
}

fn may_block() -> bool {
    let kind = rustix::fs::fstat(io::stderr()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    kind != Ok(FileType::RegularFile)
}

/// Puts an open file description of our own in the place of the one that was inherited.
fn reopen() -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let own = rustix::fs::open("/proc/self/fd/2", flags, Mode::empty())?;
    rustix::stdio::dup2_stderr(&own)
}

/// Writes what there is room for, now.
fn write_at_once(to: BorrowedFd<'_>, bytes: &[u8]) -> rustix::io::Result<usize> {
    match pwritev2(to, &[IoSlice::new(bytes)], HERE, ReadWriteFlags::NOWAIT) {
        Err(Errno::OPNOTSUPP) if has_room(to) => rustix::io::write(to, bytes),
        written => written,
    }
}

fn has_room(to: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
    let now = Timespec::default();
    // A reader that has gone counts as room: the write says so.
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::thread;

    use super::*;

    /// Many write at the same time, and find room that another takes before them.
    #[test]
    fn a_shared_pipe_holds_nobody_up() {
        let (ours, theirs) = io::pipe().expect("a pipe");
        let (stream, other) = UnixStream::pair().expect("sockets");
        let (datagram, another) = UnixDatagram::pair().expect("sockets");
        for to in [theirs.as_fd(), stream.as_fd(), datagram.as_fd()] {
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| while write_at_once(to, &[b'x'; PIPE_BUF]).is_ok() {});
                }
            });
            let full = write_at_once(to, &[b'x'; PIPE_BUF]);
            assert_eq!(full, Err(Errno::AGAIN));
        }
        drop((ours, other, another));
    }
}
