//! The guest's agent (qemu-guest-agent, `org.qemu.guest_agent.0`): one task speaks to it, a request at a time, and asks
//! regularly for what virt-handler wants to know. Nobody waits for a guest: who asks says for how long, and what is
//! shown of the guest is what was heard last.
//!
//! ```text
//!   exec, ping, freeze ──▶ requests ──▶ session ◀──▶ channel ◀──▶ port of the guest
//!                                          │ what changed
//!                                          └──▶ the pod's step
//! ```

mod channel;
mod credentials;
mod exec;
mod freeze;
mod polls;
mod reboot;
mod session;
mod time;
mod view;

use std::cell::OnceCell;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::{oneshot, watch};

pub(crate) use self::exec::Ran;
pub(super) use self::freeze::Freezer;
pub(super) use self::view::{AgentView, Interface, Os};

use self::channel::{Channel, ChannelError};
use self::session::Session;

/// Requests that wait for the one before.
const MAX_WAITING: usize = 64;

/// The agent cannot be asked, or does not do it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum AgentError {
    /// Nobody has the port open, or answers there.
    #[error("The guest agent is not connected")]
    NotConnected,
    /// The guest does not run.
    #[error("The machine is paused, and its guest agent with it")]
    Paused,
    /// It takes too long.
    #[error("The guest agent did not answer in time")]
    Silent,
    /// It says no.
    #[error("The guest agent refused: {0}")]
    Refused(String),
}

/// Something to ask.
#[derive(Debug)]
struct Question {
    command: &'static str,
    arguments: Value,
    answer: oneshot::Sender<Result<Value, AgentError>>,
}

impl Question {
    fn answer(self, answer: Result<Value, AgentError>) {
        // Who asked may have had no patience.
        let _ = self.answer.send(answer);
    }
}

/// The agent of the pod's guest, if there is one.
#[derive(Debug, Default)]
pub(super) struct Agent {
    session: OnceCell<Sender<Question>>,
    runs: watch::Sender<bool>,
    clock: time::Clock,
}

impl Agent {
    /// Begins to listen at the agent's port; `tell` hears of each change.
    pub(super) fn listen(
        self: &Rc<Self>,
        port: OwnedFd,
        tell: impl AsyncFn(AgentView) + 'static,
    ) -> io::Result<()> {
        let channel_of_port = Channel::new(port)?;
        let (sender, requests) = channel(MAX_WAITING);
        if self.session.set(sender).is_ok() {
            let session = Session::new(channel_of_port, requests, self.runs.subscribe());
            tokio::task::spawn_local(session.serve(tell));
        }
        Ok(())
    }

    /// Whether the guest runs: one that stands still is not asked, and not expected to answer.
    pub(super) fn set_runs(&self, runs: bool) {
        self.runs.send_if_modified(|known| {
            let changed = *known != runs;
            *known = runs;
            changed
        });
    }

    /// What [`Agent::set_runs`] said.
    pub(super) fn runs(&self) -> bool {
        *self.runs.borrow()
    }

    /// Asks for something; the answer's `return`.
    pub(super) async fn ask(
        &self,
        command: &'static str,
        arguments: Value,
        patience: Duration,
    ) -> Result<Value, AgentError> {
        let session = self.session.get().ok_or(AgentError::NotConnected)?;
        let (answer, answered) = oneshot::channel();
        let request = Question {
            command,
            arguments,
            answer,
        };
        let ask = async {
            let sent = session.send(request).await;
            sent.map_err(|_| AgentError::NotConnected)?;
            answered.await.map_err(|_| AgentError::NotConnected)?
        };
        match tokio::time::timeout(patience, ask).await {
            Ok(answer) => answer,
            Err(_) => Err(AgentError::Silent),
        }
    }
}

/// An agent cannot be spoken to by its socket, or does not do what it is asked.
#[derive(Debug, Error)]
pub(crate) enum ByAgentError {
    /// There is none, or no way to wait for it.
    #[error("Cannot speak to the guest's agent")]
    Socket(#[from] io::Error),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Time for an agent to be there. One that is slow takes some seconds for each answer: a guest whose instructions are
/// interpreted, on a host that is busy.
const COMES_WITHIN: Duration = Duration::from_secs(60);

/// Time before it is asked anew whether it is there: what was said while nobody had the port open is lost.
const ASK_ANEW: Duration = Duration::from_secs(5);

/// Runs a program in the guest whose agent's port is the socket `path`, as [`Agent::run`] does, and asks for nothing else.
pub(crate) fn run_by_agent(
    path: &Path,
    program: &str,
    arguments: &[String],
    patience: Duration,
) -> Result<Ran, ByAgentError> {
    let port = UnixStream::connect(path)?;
    super::rpc::runtime()?.block_on(async {
        let mut channel = Channel::new(port.into())?;
        begin(&mut channel, COMES_WITHIN).await?;
        let ask = async |command: &'static str, arguments: Value, patience| {
            let said = channel.ask(command, &arguments, patience).await;
            said.map_err(|error| match error {
                ChannelError::Silent => AgentError::Silent,
                ChannelError::Closed(_) => AgentError::NotConnected,
            })?
            .map_err(AgentError::Refused)
        };
        Ok(exec::run(ask, program, arguments, patience).await?)
    })
}

/// Waits until an agent answers. It may answer late, so each attempt has longer than the one before.
async fn begin(channel: &mut Channel, patience: Duration) -> Result<(), AgentError> {
    let attempts = async {
        let mut patience = ASK_ANEW;
        loop {
            match channel.sync(patience).await {
                Err(ChannelError::Silent) => patience *= 2,
                begun => return begun,
            }
        }
    };
    match tokio::time::timeout(patience, attempts).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(AgentError::NotConnected),
    }
}

/// What a guest has said.
#[derive(Debug, Default)]
pub struct Heard {
    /// Its refusals.
    pub refusals: Vec<String>,
    /// What would be told of it.
    pub told: Vec<Value>,
}

/// Takes each line for the answer to the next command that an agent is asked for regularly, and for how a program ended.
/// For a fuzzer, since a guest may say anything.
pub fn hear(lines: &[u8]) -> Heard {
    let (mut view, mut heard) = (AgentView::default(), Heard::default());
    view.connected = true;
    let commands = polls::COMMANDS.iter().cycle();
    for (line, (command, _)) in lines.split(|byte| *byte == b'\n').zip(commands) {
        match channel::understand(line) {
            Some(Ok(answer)) => {
                // What a program printed is what somebody wanted to have.
                let _ = exec::ended(answer.clone());
                view.hear(command, answer);
            }
            Some(Err(refusal)) => heard.refusals.push(refusal),
            None => {}
        }
    }
    let (os, interfaces) = (json!(view.os), json!(view.interfaces));
    heard.told = vec![
        view.info(),
        view.users(),
        view.filesystems(),
        os,
        interfaces,
    ];
    heard
}

#[cfg(test)]
mod tests;
