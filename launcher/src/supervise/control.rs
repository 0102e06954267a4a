//! The control socket of a running machine: JSON objects, one a line, for tests and for people
//! (docs/control.md).
//!
//! Clients send [`Call`]s and get a [`Reply`] for each; all of them get every event of the machine.

mod client;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};
use vmm::control::{Call, Command, MachineState, Reply, VERSION};

use self::client::Client;
use super::outcome::{Death, Outcome, syscall_name};
use crate::opener::ToOpen;
use crate::resources::ListenSocket;

/// Clients at a time.
const MAX_CLIENTS: usize = 8;

/// What the launcher says beside the machine's events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    tag = "event"
)]
pub enum LauncherEvent {
    /// The first line that a client gets.
    Hello {
        /// Version of the protocol.
        version: u32,
        /// The machine's state now.
        state: MachineState,
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
        /// Always [`MachineState::Ended`].
        state: MachineState,
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

impl LauncherEvent {
    /// The last line of a run whose vm process ended so.
    pub(crate) fn ended(outcome: &Outcome, death: Option<Death>) -> Self {
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
            signal: death.and_then(Death::signal),
            violation,
            message: outcome.to_string(),
            state: MachineState::Ended,
        }
    }
}

/// A line of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// What the launcher is to have opened and to send along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<ToOpen>,
    /// The call.
    #[serde(flatten)]
    pub call: Call,
}

/// Who asked, and under which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    /// Number of the connection, never used again; 0 for the launcher itself.
    pub(crate) client: u64,
    /// The client's own number for the call.
    pub(crate) id: u64,
}

/// A call of a client.
#[derive(Debug)]
pub(crate) struct ClientCall {
    pub(crate) asker: Asker,
    pub(crate) command: Command,
    /// What is to come with it besides.
    pub(crate) open: Option<ToOpen>,
    /// What came with it, for the vm process.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// The listening socket and its clients.
#[derive(Debug)]
pub struct ControlServer {
    socket: ListenSocket,
    clients: Vec<Client>,
    next_client: u64,
}

impl ControlServer {
    /// Serves clients of `socket`.
    pub fn new(socket: ListenSocket) -> io::Result<Self> {
        socket.listener().set_nonblocking(true)?;
        Ok(Self {
            socket,
            clients: Vec::new(),
            next_client: 1,
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Descriptors to wait for: the listening socket, then the clients.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.socket.as_fd()).chain(self.clients.iter().map(AsFd::as_fd))
    }

    /// Serves the descriptors of [`ControlServer::fds`] that are ready; new clients hear of `state`.
    pub(crate) fn serve(&mut self, ready: &[bool], state: MachineState) -> Vec<ClientCall> {
        let mut calls = Vec::new();
        let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
        for (index, client) in self.clients.iter_mut().enumerate() {
            if is_ready(index + 1) {
                client.read(&mut calls);
            }
        }
        self.forget_the_gone();
        if is_ready(0) {
            self.accept(state);
        }
        calls
    }

    /// Sends a line to all clients; those that do not read lose their connection.
    pub(crate) fn broadcast(&mut self, message: &impl Serialize) {
        self.clients
            .iter_mut()
            .for_each(|client| client.write(message));
        self.forget_the_gone();
    }

    /// Answers a call, if its client is still there.
    pub(crate) fn reply(&mut self, client: u64, reply: &Reply) {
        let asker = self
            .clients
            .iter_mut()
            .find(|known| known.number() == client);
        asker.into_iter().for_each(|client| client.write(reply));
        self.forget_the_gone();
    }

    fn forget_the_gone(&mut self) {
        self.clients.retain(|client| !client.is_gone());
    }

    fn accept(&mut self, state: MachineState) {
        match self.socket.listener().accept() {
            Ok((stream, _)) if self.clients.len() < MAX_CLIENTS => {
                if let Err(error) = stream.set_nonblocking(true) {
                    tracing::debug!("control client: {error}");
                    return;
                }
                let mut client = Client::new(self.next_client, stream);
                self.next_client += 1;
                let version = VERSION;
                client.write(&LauncherEvent::Hello { version, state });
                self.clients.push(client);
            }
            Ok(_) => tracing::warn!("more than {MAX_CLIENTS} control clients: one was refused"),
            Err(error) => tracing::debug!("control socket: {error}"),
        }
    }
}
