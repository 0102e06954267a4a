//! The host's side of a queue pair.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::stream::Stream;
use crate::tap::{self, Offloads};

/// What a NIC is connected to.
#[derive(Debug)]
pub enum Backend {
    /// One TAP queue per queue pair, as [`tap::open`] makes them.
    Taps(Vec<File>),
    /// A stream socket; one queue pair, no offloads.
    Stream(Arc<Stream>),
}

impl Backend {
    /// The same backend for another machine.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Taps(taps) => Self::Taps(
                taps.iter()
                    .map(File::try_clone)
                    .collect::<io::Result<_>>()?,
            ),
            Self::Stream(stream) => Self::Stream(Arc::clone(stream)),
        })
    }

    /// Queue pairs that it can serve.
    pub(super) fn queues(&self) -> usize {
        match self {
            Self::Taps(taps) => taps.len(),
            Self::Stream(_) => 1,
        }
    }

    /// One port for each queue pair.
    pub(super) fn into_ports(self) -> Vec<Port> {
        match self {
            Self::Taps(taps) => taps.into_iter().map(Port::Tap).collect(),
            Self::Stream(stream) => vec![Port::Stream(stream)],
        }
    }
}

/// What one queue pair is connected to.
#[derive(Debug)]
pub(super) enum Port {
    Tap(File),
    Stream(Arc<Stream>),
}

impl Port {
    /// The descriptor to poll.
    pub(super) fn file(&self) -> &File {
        match self {
            Self::Tap(tap) => tap,
            Self::Stream(stream) => stream.socket(),
        }
    }

    /// Whether the other side is gone for good.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Tap(_) => false,
            Self::Stream(stream) => stream.is_lost(),
        }
    }

    /// Says which unfinished frames may come; none ever do from a stream.
    pub(super) fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap::set_offloads(tap, offloads),
            Self::Stream(_) => Ok(()),
        }
    }

    /// Makes it take part in the traffic, or not. A stream is its NIC's only port and always does.
    pub(super) fn set_attached(&self, attached: bool) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap::set_queue_attached(tap, attached),
            Self::Stream(_) => Ok(()),
        }
    }
}

/// Whether `file` is a socket.
pub(super) fn is_socket(file: &File) -> bool {
    let stat = rustix::fs::fstat(file.as_fd());
    stat.is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket
    })
}
