//! The outside ends of the guest's serial console.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use vmm::control::FdRole;

use super::{Descriptors, ListenSocket, ResourceError};
use crate::cli::ConsoleTarget;
use crate::terminal;

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
            let input = io::stdin().as_fd().try_clone_to_owned();
            let output = io::stdout().as_fd().try_clone_to_owned();
            let fds = &mut console.descriptors;
            if !terminal::is_in_background() {
                fds.push(
                    FdRole::ConsoleInput,
                    input.map_err(ResourceError::Terminal)?,
                );
            }
            fds.push(
                FdRole::ConsoleOutput,
                output.map_err(ResourceError::Terminal)?,
            );
        }
        ConsoleTarget::File(path) => {
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o600);
            let file = options.open(path).map_err(|source| ResourceError::Open {
                what: "console file".to_owned(),
                path: path.clone(),
                source,
            })?;
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
