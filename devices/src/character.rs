//! The host's side of a stream of bytes: a unix socket with one client at a time, a file, or a terminal or
//! pipe, and a log beside it. Nothing here waits.

mod bounded;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::SocketFlags;
use serde::{Deserialize, Serialize};

use self::bounded::BoundedFile;
pub use self::bounded::FILE_LIMIT;
use crate::at_once;

/// Most bytes written to a terminal or pipe at once: what a pipe that is writable always takes is `PIPE_BUF`, what
/// a terminal takes is less.
const STREAM_CHUNK: usize = 256;

/// What a back-end's descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CharacterKind {
    /// A listening unix stream socket.
    Socket,
    /// A file, which takes output and gives no input.
    File,
}

/// How far a write came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// So many bytes are gone, to the other side or because there is none.
    Bytes(usize),
    /// The other side takes no more for now.
    Full,
}

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes came.
    Bytes(usize),
    /// Nothing is there for now.
    Nothing,
}

/// A back-end.
#[derive(Debug)]
pub struct Character {
    side: Side,
    /// Copy of all output, if the back-end keeps one.
    log: Option<BoundedFile>,
    /// Readable when something may have happened; what, is found out by trying.
    events: OwnedFd,
}

#[derive(Debug)]
enum Side {
    Socket {
        listener: OwnedFd,
        client: Option<OwnedFd>,
    },
    /// Either is gone once it failed, or the input is at its end.
    Streams {
        input: Option<Input>,
        output: Option<Output>,
    },
}

#[derive(Debug)]
struct Input {
    from: OwnedFd,
    is_file: bool,
}

impl Input {
    /// Others, who share it, may take what is there.
    fn read(&self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        match self.is_file {
            true => retry_on_intr(|| rustix::io::read(&self.from, &mut *buffer)),
            false => at_once::read(self.from.as_fd(), buffer),
        }
    }
}

#[derive(Debug)]
enum Output {
    File(BoundedFile),
    /// A terminal or a pipe, whose flags, and whose room, are others', too.
    Stream(OwnedFd),
}

impl Character {
    /// Takes over a descriptor. Fails if the process has no descriptors left.
    pub fn new(kind: CharacterKind, descriptor: OwnedFd, log: Option<File>) -> io::Result<Self> {
        match kind {
            CharacterKind::File => Self::streams(None, Some(descriptor), log),
            CharacterKind::Socket => Self::socket(descriptor, log),
        }
    }

    /// A listening unix stream socket.
    pub fn socket(listener: OwnedFd, log: Option<File>) -> io::Result<Self> {
        let events = epoll::create(CreateFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&listener, true)?;
        watch(&events, &listener, EventFlags::IN)?;
        let client = None;
        Ok(Self::of(Side::Socket { listener, client }, log, events))
    }

    /// Terminals, pipes or files to read from and to write to.
    pub fn streams(
        input: Option<OwnedFd>,
        output: Option<OwnedFd>,
        log: Option<File>,
    ) -> io::Result<Self> {
        let events = epoll::create(CreateFlags::CLOEXEC)?;
        if let Some(input) = &input {
            watch(&events, input, EventFlags::IN)?;
        }
        let input = input.map(|from| Input {
            is_file: at_once::is_file(from.as_fd()),
            from,
        });
        let output = match output {
            Some(file) if at_once::is_file(file.as_fd()) => {
                Some(Output::File(BoundedFile::new(file, "file")))
            }
            Some(stream) => {
                watch(&events, &stream, EventFlags::OUT)?;
                Some(Output::Stream(stream))
            }
            None => None,
        };
        Ok(Self::of(Side::Streams { input, output }, log, events))
    }

    fn of(side: Side, log: Option<File>, events: OwnedFd) -> Self {
        let log = log.map(|log| BoundedFile::new(log.into(), "log"));
        Self { side, log, events }
    }

    /// To be watched for edges: readable when the other side came, went, wrote or took something.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Whether what is read is typed by somebody at a terminal.
    pub fn is_terminal(&self) -> bool {
        match &self.side {
            Side::Streams { input, .. } => {
                (input.as_ref()).is_some_and(|input| rustix::termios::isatty(&input.from))
            }
            Side::Socket { .. } => false,
        }
    }

    /// Whether somebody is there, after looking for a new client.
    pub fn look(&mut self) -> bool {
        let Side::Socket { listener, client } = &mut self.side else {
            return true;
        };
        if client.is_none() {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            *client = rustix::net::accept_with(&*listener, flags).ok();
            if let Some(client) = client {
                let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP;
                // Without it the client is served when the guest does something.
                let _ = watch(&self.events, client, flags);
            }
        }
        client.is_some()
    }

    /// Reads what the other side wrote; a client that is gone is no client any more, and what is at its end is
    /// read no more.
    pub fn read(&mut self, buffer: &mut [u8]) -> Read {
        let read = match &self.side {
            Side::Socket { client: None, .. } | Side::Streams { input: None, .. } => {
                return Read::Nothing;
            }
            Side::Socket {
                client: Some(client),
                ..
            } => retry_on_intr(|| rustix::io::read(client, &mut *buffer)),
            Side::Streams {
                input: Some(input), ..
            } => input.read(buffer),
        };
        match read {
            Ok(0) if buffer.is_empty() => Read::Nothing,
            Ok(count) if count > 0 => Read::Bytes(count),
            Err(Errno::AGAIN) => Read::Nothing,
            Ok(_) | Err(_) => {
                self.end_input();
                Read::Nothing
            }
        }
    }

    /// Writes for the other side, and into the log.
    pub fn write(&mut self, bytes: &[u8]) -> Written {
        let written = match &mut self.side {
            Side::Socket { client: None, .. } | Side::Streams { output: None, .. } => {
                Ok(bytes.len())
            }
            Side::Socket {
                client: Some(client),
                ..
            } => retry_on_intr(|| rustix::io::write(&*client, bytes)),
            Side::Streams {
                output: Some(Output::File(file)),
                ..
            } => {
                file.append(bytes);
                Ok(bytes.len())
            }
            Side::Streams {
                output: Some(Output::Stream(stream)),
                ..
            } => at_once::write(stream.as_fd(), &bytes[..bytes.len().min(STREAM_CHUNK)]),
        };
        let count = match written {
            Ok(count) => count,
            Err(Errno::AGAIN) => return Written::Full,
            Err(_) => {
                self.end_output();
                bytes.len()
            }
        };
        if let Some(log) = &mut self.log {
            log.append(&bytes[..count]);
        }
        Written::Bytes(count)
    }

    /// Waits until the other side takes more, or for `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let to = match &self.side {
            Side::Socket { client, .. } => client.as_ref(),
            Side::Streams {
                output: Some(Output::Stream(stream)),
                ..
            } => Some(stream),
            Side::Streams { .. } => None,
        };
        if let Some(to) = to {
            at_once::is_ready(to.as_fd(), PollFlags::OUT, timeout);
        }
    }

    fn end_input(&mut self) {
        match &mut self.side {
            Side::Socket { client, .. } => *client = None,
            Side::Streams { input, .. } => {
                forget(&self.events, input.take().map(|input| input.from));
            }
        }
    }

    fn end_output(&mut self) {
        match &mut self.side {
            Side::Socket { client, .. } => *client = None,
            Side::Streams { output, .. } => {
                if let Some(Output::Stream(stream)) = output.take() {
                    forget(&self.events, Some(stream));
                }
            }
        }
    }
}

fn watch(events: &OwnedFd, fd: &OwnedFd, flags: EventFlags) -> io::Result<()> {
    match epoll::add(events, fd, EventData::new_u64(0), flags) {
        // Files, which are always ready.
        Err(Errno::PERM) => Ok(()),
        done => Ok(done?),
    }
}

/// Closes what was watched. Others may have the same stream open, so it would be watched on.
fn forget(events: &OwnedFd, fd: Option<OwnedFd>) {
    if let Some(fd) = fd {
        let _ = epoll::delete(events, fd);
    }
}
