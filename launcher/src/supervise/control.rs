//! The control socket of a running machine: JSON objects, one a line, for tests and for people
//! (docs/control.md).
//!
//! Clients send [`Call`]s and get a [`Reply`] for each; all of them get every event of the machine.

mod client;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};
use vmm::control::{Call, Command, MachineState, Reply, VERSION};

use self::client::Client;
use super::outcome::{Death, Outcome, syscall_name};
use crate::opener::ToOpen;
use crate::resources::ListenSocket;

/// Clients at a time.
const MAX_CLIENTS: usize = 8;

/// How long no client is looked for after one that could not be accepted: who waits for it stays ready, without end.
const REST: Duration = Duration::from_secs(1);

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
        /// Where else there is something to talk to.
        #[serde(flatten)]
        ends: Ends,
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

/// The machine's other ends: sockets, each for one client at a time, and a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ends {
    /// The serial console's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<PathBuf>,
    /// The file that its output is in, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_file: Option<PathBuf>,
    /// That of the guest's agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_agent: Option<PathBuf>,
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

/// The launcher itself, among clients.
pub(crate) const LAUNCHER: u64 = 0;

/// Who asked, and under which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    /// Number of the connection, never used again, or [`LAUNCHER`].
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
    ends: Ends,
    clients: Vec<Client>,
    next_client: u64,
    /// Nobody has looked at the last client yet.
    has_newcomer: bool,
    /// No client is accepted until then.
    rests_until: Option<Instant>,
}

impl ControlServer {
    /// Serves clients of `socket`, who are told of the machine's other `ends`.
    pub fn new(socket: ListenSocket, ends: Ends) -> io::Result<Self> {
        socket.listener().set_nonblocking(true)?;
        Ok(Self {
            socket,
            ends,
            clients: Vec::new(),
            next_client: LAUNCHER + 1,
            has_newcomer: false,
            rests_until: None,
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// The listening socket.
    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// A client that has just come, once.
    pub(crate) fn newcomer(&mut self) -> Option<BorrowedFd<'_>> {
        let is_there = std::mem::take(&mut self.has_newcomer);
        self.clients.last().filter(|_| is_there).map(AsFd::as_fd)
    }

    /// How long no client is looked for, where one could not be accepted.
    pub(crate) fn rest(&self) -> Option<Duration> {
        let until = self.rests_until?;
        until.checked_duration_since(Instant::now())
    }

    /// What to wait for: the listening socket, then the clients.
    pub(crate) fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let listens = match self.rest() {
            Some(_) => PollFlags::empty(),
            None => PollFlags::IN,
        };
        let clients = self.clients.iter().map(AsFd::as_fd);
        let clients = clients.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        std::iter::once(PollFd::from_borrowed_fd(self.listener(), listens)).chain(clients)
    }

    /// Serves those of [`ControlServer::poll_fds`] that are ready; new clients hear of `state`.
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
            let accepted = self.socket.listener().accept();
            self.admit(accepted.map(|(stream, _)| stream), state);
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

    /// Takes in who has been accepted.
    fn admit(&mut self, accepted: io::Result<UnixStream>, state: MachineState) {
        match accepted {
            Ok(stream) if self.clients.len() < MAX_CLIENTS => {
                if let Err(error) = stream.set_nonblocking(true) {
                    tracing::debug!("control client: {error}");
                    return;
                }
                let mut client = Client::new(self.next_client, stream);
                self.next_client += 1;
                let (version, ends) = (VERSION, self.ends.clone());
                client.write(&LauncherEvent::Hello {
                    version,
                    state,
                    ends,
                });
                self.clients.push(client);
                self.has_newcomer = true;
            }
            Ok(_) => tracing::warn!("more than {MAX_CLIENTS} control clients: one was refused"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!("a control client cannot be accepted: {error}");
                self.rests_until = Some(Instant::now() + REST);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    fn flags(server: &ControlServer) -> Vec<PollFlags> {
        let mut fds: Vec<_> = server.poll_fds().collect();
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).expect("polled");
        fds.iter().map(PollFd::revents).collect()
    }

    /// As where the launcher has no descriptor for one: who waits stays there, and would wake it without end.
    #[test]
    fn who_cannot_be_accepted_is_not_looked_for_at_once() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("socket");
        let socket = ListenSocket::bind("test", &path).expect("a socket");
        let mut server = ControlServer::new(socket, Ends::default()).expect("a server");
        let _client = UnixStream::connect(&path).expect("somebody listens");
        assert_eq!(flags(&server), [PollFlags::IN]);
        assert!(server.newcomer().is_none());
        server.serve(&[true], MachineState::Running);
        assert!(server.newcomer().is_some() && server.newcomer().is_none());
        assert!(server.rest().is_none() && flags(&server).len() == 2);

        let _waiting = UnixStream::connect(&path).expect("somebody listens");
        assert!(flags(&server)[0].contains(PollFlags::IN));
        server.admit(Err(Errno::MFILE.into()), MachineState::Running);
        assert!(server.rest().is_some_and(|rest| rest <= REST));
        assert!(!flags(&server)[0].contains(PollFlags::IN));
        server.rests_until = Some(Instant::now());
        assert!(flags(&server)[0].contains(PollFlags::IN), "then it is");
    }
}
