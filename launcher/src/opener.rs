//! A process that opens what a machine gets while it runs: the launcher has given up every path by
//! then.
//!
//! It is there only with `run --open-below` or `run --open-taps`, and under KubeVirt, where it makes the files of memory
//! dumps as well, and a second one connects to virt-handler. It opens regular files and block devices below the
//! given directories, or TAPs of its network namespace (under KubeVirt those that virt-handler has made), and hands their descriptors to the launcher, and can do nothing
//! else: no path outside, no process, no capability but to open what belongs to another user and, for
//! TAPs, CAP_NET_ADMIN, if the launcher had these.
//!
//! ```text
//!   control client        launcher                     opener
//!        │ call, path        │ Order {version, id, …}     │
//!        ├──────────────────▶├───────────────────────────▶│ openat2 below a directory
//!        │                   │ Answer {id, …}, descriptor │
//!        │                   │◀───────────────────────────┤
//!        │                   │ call, descriptor           ▼
//!        │                   ├─────────────▶ vm process
//! ```
//!
//! Losing the socket ends it. If it ends, the machine goes on, and nothing is opened any more.

mod beneath;
mod orders;
mod process;
mod protocol;
mod records;
mod taps;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use seccomp::jail;
pub use seccomp::jail::Use;
use thiserror::Error;
use vmm::control::{self, ControlError};

pub use self::beneath::{Directories, OpenError};
pub use self::orders::{Opened, OrderError, Orders};
pub use self::protocol::{
    Answer, FileToGrow, FileToMake, FileToOpen, Found, ImageToOpen, MAX_SECRETS, NicToOpen,
    Openable, OpenedImage, OpenedNic, Order, SecretFiles, SecretsToRead, SocketToConnect,
    TapToOpen, ToOpen, VERSION, answer,
};
pub(crate) use self::records::is_secret;
pub use self::taps::{TapError, Taps};

/// Where the device is by which TAPs are made.
const TAP_DIRECTORY: &str = "/dev/net";

/// The opener cannot be started.
#[derive(Debug, Error)]
pub enum OpenerError {
    /// A directory cannot be used.
    #[error("Cannot open files below {path:?}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// TAPs cannot be made.
    #[error(
        "Cannot use {TAP_DIRECTORY}, of which TAPs are made (the container needs the device {TAP_DIRECTORY}/tun)"
    )]
    Taps(#[source] io::Error),
    /// No socket pair.
    #[error("Cannot make a socket pair for the process that opens files")]
    Socket(#[source] io::Error),
    /// No process.
    #[error("Cannot fork the process that opens files")]
    Fork(#[source] io::Error),
}

/// What an opener does with TAPs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TapUse {
    /// Nothing.
    #[default]
    Nothing,
    /// Those of the pod's NICs, which are there, are opened.
    Adopt,
    /// All are opened, or made, and brought up.
    Make,
}

/// What an opener may do.
#[derive(Clone, Debug)]
pub struct Allowed {
    /// Directories below which it opens files.
    pub directories: Vec<PathBuf>,
    /// What is to be done there.
    pub usage: Use,
    /// What is to be done with TAPs.
    pub taps: TapUse,
    /// Directories below which it makes images larger.
    pub growing: Vec<PathBuf>,
    /// Where it makes the files of overlays, which have no names.
    pub scratch: Option<PathBuf>,
    /// Sockets that it connects to, which need not be there yet.
    pub sockets: Vec<PathBuf>,
}

/// A running opener.
#[derive(Debug)]
pub struct Opener(OwnedFd);

impl Opener {
    /// Starts one. The caller has one thread.
    pub fn spawn(allowed: &Allowed, json_log: bool) -> Result<Self, OpenerError> {
        // What is wrong with the directories is said here; the new process opens its own.
        Openable::prepare(allowed)?;
        let (ours, theirs) = control::pair().map_err(OpenerError::Socket)?;
        let parent = rustix::process::getpid();
        let enter = || process::enter(allowed, parent, json_log);
        jail::fork(theirs, enter).map_err(OpenerError::Fork)?;
        Ok(Self(ours))
    }

    /// The one at the other end of a socket that came from [`Opener::give`].
    pub fn given(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Its socket, for another process to talk to it.
    pub fn give(self) -> OwnedFd {
        self.0
    }

    /// Has something opened. Never waits for the opener.
    pub fn order(&self, order: &Order) -> Result<(), ControlError> {
        control::try_send(self.0.as_fd(), order, &[])
    }

    /// The next answer; the caller has seen that there is one, or the end.
    pub fn receive(&self) -> Result<(Answer, Vec<OwnedFd>), ControlError> {
        control::receive(self.0.as_fd())
    }
}

impl AsFd for Opener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
