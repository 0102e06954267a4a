//! The control socket of a running machine: JSON objects, one a line, for tests and for people.
//!
//! Clients send [`Request`]s; all of them get every event of the machine and every [`Answer`].

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::process::WaitStatus;
use serde::{Deserialize, Serialize};
use vmm::control::Command;

use super::outcome::{Outcome, syscall_name};
use crate::resources::ListenSocket;

/// Clients at a time.
const MAX_CLIENTS: usize = 8;

/// Longest line of a client.
const MAX_LINE: usize = 4096;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "command", deny_unknown_fields)]
pub enum Request {
    /// Stop the vCPUs and devices; answered by the event `paused`.
    Pause,
    /// Let them go on; answered by the event `running`.
    Resume,
    /// Press the ACPI power button; not answered.
    PowerButton,
    /// Reset the machine in place; answered by the event `reset`.
    Reset,
    /// End the run now; answered by the end of the connection.
    Stop,
    /// Counters; answered by the event `stats`.
    Stats,
    /// Answered by [`Answer::Status`].
    Status,
    /// Set the link state of a NIC; not answered.
    SetLink {
        /// Interface name.
        nic: String,
        /// New state.
        up: bool,
    },
}

impl Request {
    /// What the vm process is told; none if the launcher serves the request itself.
    pub(super) fn command(&self) -> Option<Command> {
        Some(match self {
            Self::Pause => Command::Pause,
            Self::Resume => Command::Resume,
            Self::PowerButton => Command::PowerButton,
            Self::Reset => Command::Reset,
            Self::Stats => Command::Stats,
            Self::SetLink { nic, up } => Command::SetLink {
                nic: nic.clone(),
                up: *up,
            },
            Self::Stop | Self::Status => return None,
        })
    }
}

/// What the launcher says besides the machine's events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    tag = "event"
)]
pub enum Answer {
    /// State of the machine.
    Status {
        /// As of the last event.
        state: State,
    },
    /// A line was not understood.
    Error {
        /// Why.
        message: String,
    },
    /// The run is over. The last line.
    Ended {
        /// podvisor's exit status.
        exit_status: u8,
        /// The signal that killed the vm process.
        #[serde(skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// The system call that it was killed for.
        #[serde(skip_serializing_if = "Option::is_none")]
        violation: Option<Violation>,
        /// How it ended, as in the log.
        message: String,
    },
}

/// A system call that a seccomp filter forbids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// Role of the thread that made it, as in `podvisor seccomp show`.
    pub role: String,
    /// Its number.
    pub syscall: u32,
    /// Its name, `unknown` if the number has none.
    pub name: String,
}

impl Answer {
    /// The last line of a run whose vm process had this wait status.
    pub(super) fn ended(outcome: &Outcome, status: Option<WaitStatus>) -> Self {
        let violation = match outcome {
            Outcome::Violation { role, syscall } => Some(Violation {
                role: role.clone(),
                syscall: *syscall,
                name: syscall_name(*syscall).to_owned(),
            }),
            _ => None,
        };
        Self::Ended {
            exit_status: outcome.exit() as u8,
            signal: status.and_then(WaitStatus::terminating_signal),
            violation,
            message: outcome.to_string(),
        }
    }
}

/// State of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Being built.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still.
    Paused,
}

/// The listening socket and its clients.
#[derive(Debug)]
pub struct ControlServer {
    socket: ListenSocket,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    gone: bool,
}

impl ControlServer {
    /// Serves clients of `socket`.
    pub fn new(socket: ListenSocket) -> io::Result<Self> {
        socket.listener().set_nonblocking(true)?;
        Ok(Self {
            socket,
            clients: Vec::new(),
        })
    }

    /// Descriptors to wait for: the listening socket, then the clients.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let clients = self.clients.iter().map(|client| client.stream.as_fd());
        std::iter::once(self.socket.as_fd()).chain(clients)
    }

    /// Serves the descriptors of [`ControlServer::fds`] that are ready.
    pub(super) fn serve(&mut self, ready: &[bool]) -> Vec<Request> {
        let mut requests = Vec::new();
        let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
        for (index, client) in self.clients.iter_mut().enumerate() {
            if is_ready(index + 1) {
                client.read(&mut requests);
            }
        }
        self.clients.retain(|client| !client.gone);
        if is_ready(0) {
            self.accept();
        }
        requests
    }

    /// Sends a line to all clients; those that do not read lose their connection.
    pub(super) fn broadcast(&mut self, message: &impl Serialize) {
        for client in &mut self.clients {
            client.write(message);
        }
        self.clients.retain(|client| !client.gone);
    }

    fn accept(&mut self) {
        match self.socket.listener().accept() {
            Ok((stream, _)) if self.clients.len() < MAX_CLIENTS => {
                if let Err(error) = stream.set_nonblocking(true) {
                    tracing::debug!("control client: {error}");
                    return;
                }
                self.clients.push(Client {
                    stream,
                    input: Vec::new(),
                    gone: false,
                });
            }
            Ok(_) => tracing::warn!("more than {MAX_CLIENTS} control clients: one was refused"),
            Err(error) => tracing::debug!("control socket: {error}"),
        }
    }
}

impl Client {
    fn read(&mut self, requests: &mut Vec<Request>) {
        let mut buffer = [0; 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.gone = true,
            Ok(len) => self.input.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.gone = true,
        }
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(request) => requests.push(request),
                Err(error) => self.write(&Answer::Error {
                    message: error.to_string(),
                }),
            }
        }
        if self.input.len() > MAX_LINE {
            self.gone = true;
        }
    }

    fn write(&mut self, message: &impl Serialize) {
        let Ok(mut line) = serde_json::to_vec(message) else {
            return;
        };
        line.push(b'\n');
        // A partial line would garble the stream, so a client that lags that far behind is dropped.
        if self.stream.write(&line).ok() != Some(line.len()) {
            self.gone = true;
        }
    }
}
