//! TAP devices for NICs that come while the machine runs.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use devices::tap::{self, OpenTapError};
use devices::virtio::net::MAX_QUEUE_PAIRS;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use thiserror::Error;

use super::protocol::TapToOpen;
use super::{OpenerError, TAP_DIRECTORY};
use crate::resources::open_below;

/// A TAP cannot be had.
#[derive(Debug, Error)]
pub enum TapError {
    /// More queues than a NIC has, or none.
    #[error("A TAP of {0} queues cannot be: 1 to {MAX_QUEUE_PAIRS}")]
    Queues(u16),
    /// It cannot be opened or made.
    #[error(transparent)]
    Open(#[from] OpenTapError),
    /// It is there, and carries nothing.
    #[error("Cannot bring TAP {name:?} up")]
    Up {
        /// The TAP.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is there, and leads nowhere.
    #[error("Cannot make TAP {name:?} a port of bridge {bridge:?}")]
    Bridge {
        /// The TAP.
        name: String,
        /// The bridge.
        bridge: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What TAPs are made of when nothing can be opened elsewhere any more.
#[derive(Debug)]
pub struct Taps {
    /// Where `tun` is.
    directory: OwnedFd,
    /// By which interfaces are asked for things.
    socket: OwnedFd,
}

impl Taps {
    /// In the network namespace of now.
    pub fn open() -> Result<Self, OpenerError> {
        let fail = |errno: rustix::io::Errno| OpenerError::Taps(errno.into());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, TAP_DIRECTORY, flags, Mode::empty());
        let (family, flags) = (AddressFamily::INET, SocketFlags::CLOEXEC);
        let socket = socket_with(family, SocketType::DGRAM, flags, None);
        Ok(Self {
            directory: directory.map_err(fail)?,
            socket: socket.map_err(fail)?,
        })
    }

    /// Opens a TAP, which is made if it is not there, and brings it up. One that was made goes with its descriptors.
    pub fn attach(&self, wanted: &TapToOpen) -> Result<Vec<OwnedFd>, TapError> {
        let name = &wanted.tap;
        if !(1..=MAX_QUEUE_PAIRS).contains(&wanted.queues) {
            return Err(TapError::Queues(wanted.queues));
        }
        let queues = tap::open(|| self.device(), name, wanted.queues)?;
        if let Some(bridge) = &wanted.bridge {
            let joined = tap::join_bridge(&self.socket, name, bridge);
            joined.map_err(|source| TapError::Bridge {
                name: name.clone(),
                bridge: bridge.clone(),
                source,
            })?;
        }
        tap::bring_up(&self.socket, name).map_err(|source| TapError::Up {
            name: name.clone(),
            source,
        })?;
        Ok(queues.into_iter().map(OwnedFd::from).collect())
    }

    fn device(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let device = open_below(&self.directory, Path::new("tun"), flags, resolve)?;
        Ok(device.into())
    }
}
