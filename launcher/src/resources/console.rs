//! The outside ends of the guest's serial console.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::OFlags;
use vmm::control::FdRole;

use super::{Descriptors, ListenSocket, ResourceError};
use crate::{streams, terminal};

/// Where the serial console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleTarget {
    /// Standard input and output.
    Stdio,
    /// Nowhere.
    None,
    /// Output is appended to a file.
    File(PathBuf),
    /// A unix stream socket, one client at a time.
    Unix(PathBuf),
}

impl FromStr for ConsoleTarget {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.split_once(':')) {
            ("stdio", _) => Ok(Self::Stdio),
            ("none", _) => Ok(Self::None),
            (_, Some(("file", path))) if !path.is_empty() => Ok(Self::File(path.into())),
            (_, Some(("unix", path))) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err("expected stdio, none, file:PATH or unix:PATH"),
        }
    }
}

/// The console's descriptors and what must outlive the machine.
#[derive(Debug, Default)]
pub struct Console {
    /// For the vm process.
    pub descriptors: Descriptors,
    /// The terminal, if there is one, is the console and should be in raw mode.
    pub on_terminal: bool,
    /// Removes the socket's path when dropped.
    pub socket: Option<ListenSocket>,
}

/// Opens where the console goes.
pub fn open_console(target: &ConsoleTarget) -> Result<Console, ResourceError> {
    let mut console = Console::default();
    match target {
        ConsoleTarget::None => {}
        ConsoleTarget::Stdio => {
            console.on_terminal = true;
            // Closed standard streams (`<&-`) are opened on /dev/null by Rust's start-up.
            let fds = &mut console.descriptors;
            if !terminal::is_in_background() {
                fds.push(FdRole::ConsoleInput, stream(io::stdin(), OFlags::RDONLY)?);
            }
            fds.push(FdRole::ConsoleOutput, stream(io::stdout(), OFlags::WRONLY)?);
        }
        ConsoleTarget::File(path) => {
            let file = open_output("console file", path)?;
            console.descriptors.push(FdRole::ConsoleOutput, file);
        }
        ConsoleTarget::Unix(path) => {
            let socket = ListenSocket::bind("console", path)?;
            let listener = socket.try_clone().map_err(|source| ResourceError::Listen {
                what: "console",
                path: path.clone(),
                source,
            })?;
            console.descriptors.push(FdRole::ConsoleListener, listener);
            console.socket = Some(socket);
        }
    }
    Ok(console)
}

/// Opens a file that a guest's output is appended to.
pub(super) fn open_output(what: &str, path: &Path) -> Result<File, ResourceError> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    options.open(path).map_err(|source| ResourceError::Open {
        what: what.to_owned(),
        path: path.to_owned(),
        source,
    })
}

/// A standard stream, which the vm process neither waits for nor makes others not wait for.
fn stream(of: impl AsFd, access: OFlags) -> Result<OwnedFd, ResourceError> {
    let shared = || of.as_fd().try_clone_to_owned();
    streams::own(of.as_fd(), access)
        .or_else(|_| shared())
        .map_err(ResourceError::Terminal)
}
