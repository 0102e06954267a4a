//! The host's side of a stream of bytes: a unix socket with one client at a time, a file, or a terminal or
//! pipe, and a log beside it. Nothing here waits.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use serde::{Deserialize, Serialize};

/// A file that output goes to is not made larger than this, bytes: guests write without end.
pub const FILE_LIMIT: u64 = 16 << 20;

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
    log: Option<File>,
    /// Readable when something may have happened; what, is found out by trying.
    events: OwnedFd,
}

#[derive(Debug)]
enum Side {
    Socket {
        listener: OwnedFd,
        client: Option<OwnedFd>,
    },
    File(OwnedFd),
}

impl Character {
    /// Takes over a descriptor. Fails if the process has no descriptors left.
    pub fn new(kind: CharacterKind, descriptor: OwnedFd, log: Option<File>) -> io::Result<Self> {
        let events = epoll::create(CreateFlags::CLOEXEC)?;
        let side = match kind {
            CharacterKind::File => Side::File(descriptor),
            CharacterKind::Socket => {
                rustix::io::ioctl_fionbio(&descriptor, true)?;
                let (data, flags) = (EventData::new_u64(0), EventFlags::IN);
                epoll::add(&events, &descriptor, data, flags)?;
                Side::Socket {
                    listener: descriptor,
                    client: None,
                }
            }
        };
        Ok(Self { side, log, events })
    }

    /// To be watched: readable when the other side came, went, wrote or took something.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
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
                let _ = epoll::add(&self.events, &*client, EventData::new_u64(1), flags);
            }
        }
        client.is_some()
    }

    /// Reads what the other side wrote; a client that is gone is no client any more.
    pub fn read(&mut self, buffer: &mut [u8]) -> Read {
        let Side::Socket {
            client: Some(client),
            ..
        } = &self.side
        else {
            return Read::Nothing;
        };
        match rustix::io::retry_on_intr(|| rustix::io::read(client, &mut *buffer)) {
            Ok(0) if buffer.is_empty() => Read::Nothing,
            Ok(count) if count > 0 => Read::Bytes(count),
            Err(Errno::AGAIN) => Read::Nothing,
            Ok(_) | Err(_) => {
                self.hang_up();
                Read::Nothing
            }
        }
    }

    /// Writes for the other side, and into the log.
    pub fn write(&mut self, bytes: &[u8]) -> Written {
        let written = match &self.side {
            Side::Socket { client: None, .. } => Ok(bytes.len()),
            Side::Socket {
                client: Some(client),
                ..
            } => rustix::io::retry_on_intr(|| rustix::io::write(client, bytes)),
            Side::File(file) => Ok(append(file.as_fd(), bytes)),
        };
        let count = match written {
            Ok(count) => count,
            Err(Errno::AGAIN) => return Written::Full,
            Err(_) => {
                self.hang_up();
                bytes.len()
            }
        };
        if let Some(log) = &self.log {
            append(log.as_fd(), &bytes[..count]);
        }
        Written::Bytes(count)
    }

    fn hang_up(&mut self) {
        if let Side::Socket { client, .. } = &mut self.side {
            *client = None;
        }
    }
}

/// Appends to a file as far as it may grow; what goes beyond is lost, so all bytes are gone.
fn append(file: BorrowedFd<'_>, bytes: &[u8]) -> usize {
    let room =
        rustix::fs::fstat(file).map_or(0, |stat| match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => FILE_LIMIT.saturating_sub(stat.st_size.unsigned_abs()),
            _ => FILE_LIMIT,
        });
    let len = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
    if len > 0 {
        // A full file system loses output as a full file does.
        let _ = rustix::io::write(file, &bytes[..len]);
    }
    bytes.len()
}
