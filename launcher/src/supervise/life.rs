//! The life of a run as the launcher sees it, without sockets and clocks: what follows on what.
//!
//! ```text
//!             first signal                grace is over,            2 s are over
//!   running ───────────────▶ asked to ───────────────────▶ forced ─────────────▶ killed
//!      │      (power button)  stop        second signal    (Stop)    (SIGKILL)
//!      ├──────────────────────────────────────────────────▶
//!      │ escape key, `ctl stop`
//!      │ the guest ended: its last event                           10 s are over
//!      └──────────────────────────────────────────────────▶ ending ────────────▶ killed
//! ```
//!
//! The run is over when the vm process is reaped and its last message is read. How it ended is decided
//! by the machine's last event, and by nothing that comes after it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tracing::Level;
use vmm::control::{Call, Command, Event, MachineState, Notice, Refusal, Reply, Report, Verdict};
use vmm::trace::Mark;

use super::control::{Asker, ClientCall, LAUNCHER};
use super::outcome::{Death, Outcome};
use crate::resources::DiskKernel;

/// How long the vm process may take to end once it is told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long it may take once its guest has ended: requests in flight are completed, and slow readers of the
/// console get their last output.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take where it writes the guest's memory before.
const DUMP_TIMEOUT: Duration = Duration::from_secs(600);

/// Time between two presses of the power button: a guest whose user space is not there yet loses one.
/// KubeVirt's node agent presses again, too, but a pod's SIGTERM comes once.
const PRESS_AGAIN: Duration = Duration::from_secs(2);

/// Calls of one client that the vm process has not answered. Far fewer than its socket has room for.
const MAX_CALLS: usize = 16;

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// Somebody wants the end of the run; the signal's name.
    Signal(&'static str),
    /// The vm process is reaped.
    Reaped(Death),
    /// The vm process says something.
    Report(Report),
    /// The vm process closed its end of the socket.
    Closed,
    /// What it says cannot be read, for this reason.
    Broken(String),
    /// A client of the control socket wants something.
    Call(ClientCall),
    /// What [`Effect::ReadBoot`] led to, or why to nothing.
    Kernel(Result<DiskKernel, String>),
    /// [`Effect::Send`] could not be done.
    NotSent { id: u64, refusal: Refusal },
    /// Time has passed.
    Tick,
}

/// What to do next.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Send a call to the vm process, if there is room.
    Send(Call, Vec<OwnedFd>),
    /// Answer a client.
    Reply { client: u64, reply: Reply },
    /// Tell all clients.
    Broadcast(Notice),
    /// Kill the vm process.
    Kill,
    /// The machine runs.
    Running,
    /// Have the kernel read that is on the machine's disk.
    ReadBoot,
    /// Write down the steps of the start.
    BootTrace { marks: Vec<Mark>, guest: Vec<Mark> },
    /// Say something to the log.
    Log(Level, String),
}

/// How far the machine is from being stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stop {
    #[default]
    Not,
    /// The power button is pressed until then, the next time at `again`.
    Asked {
        until: Instant,
        again: Instant,
    },
    Forced {
        until: Instant,
    },
    Killed,
}

/// Where a run is in its life.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// Time between the power button and a forced stop.
    grace: Duration,
    /// A guest reset ends the run.
    exit_on_reboot: bool,
    /// A guest that crashes is dumped before its vm process ends.
    crash_dump: bool,
    /// As the vm process told last.
    machine: MachineState,
    stop: Stop,
    /// Whether something outside of the guest wanted the end.
    stopped: bool,
    /// Calls under way for a snapshot that is to be the machine's end, and whether one was made.
    saving: BTreeSet<u64>,
    saved: bool,
    /// By the machine's last event.
    outcome: Option<Outcome>,
    /// How the vm process ended.
    status: Option<Death>,
    closed: bool,
    /// Calls that the vm process has not answered, by the number under which it got them.
    asked: BTreeMap<u64, Asker>,
    last_call: u64,
}

impl Life {
    pub(super) fn new(grace: Duration, exit_on_reboot: bool) -> Self {
        Self {
            grace,
            exit_on_reboot,
            ..Self::default()
        }
    }

    /// A guest that crashes is dumped.
    pub(super) fn dumping(mut self, crash_dump: bool) -> Self {
        self.crash_dump = crash_dump;
        self
    }

    /// A reset of the guest ends the run, or does not.
    pub(crate) fn end_at_reset(&mut self, exit_on_reboot: bool) {
        self.exit_on_reboot = exit_on_reboot;
    }

    /// State of the machine.
    pub(crate) fn machine(&self) -> MachineState {
        self.machine
    }

    /// The vm process may still say something.
    pub(super) fn listens(&self) -> bool {
        !self.closed
    }

    /// There is nothing left to wait for.
    pub(crate) fn is_over(&self) -> bool {
        self.status.is_some() && self.closed
    }

    /// When [`Input::Tick`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.stop {
            // One that is reaped has nothing left but its last words.
            _ if self.status.is_some() => None,
            Stop::Asked { until, again } => Some(until.min(again)),
            Stop::Forced { until } => Some(until),
            Stop::Not | Stop::Killed => None,
        }
    }

    /// How the run ended, and how the vm process did.
    pub(crate) fn outcome(self) -> (Outcome, Option<Death>) {
        let outcome = match (self.outcome, self.stopped, self.status) {
            (Some(outcome), _, _) => outcome,
            (None, true, _) => Outcome::Stopped,
            (None, false, Some(status)) => Outcome::Died(status),
            (None, false, None) => Outcome::Lost,
        };
        (outcome, self.status)
    }

    /// What follows on an input.
    pub(crate) fn step(mut self, now: Instant, input: Input) -> (Self, Vec<Effect>) {
        let mut effects = Vec::new();
        let then = &mut effects;
        match input {
            Input::Signal(name) => self.signal(now, name, then),
            Input::Reaped(status) => self.status = Some(status),
            Input::Report(Report::Reply(reply)) => self.pass_on(reply.id, reply.verdict, then),
            Input::Report(Report::Notice(notice)) => {
                then.push(Effect::Broadcast(notice.clone()));
                self.machine = notice.state;
                self.note(now, notice.event, then);
            }
            Input::Closed => {
                self.close(then);
                self.expect_end(now + STOP_TIMEOUT);
            }
            Input::Broken(reason) => {
                then.push(Effect::Log(Level::ERROR, reason));
                self.close(then);
                self.force_stop(now, then);
            }
            Input::Call(call) => self.serve(now, call, then),
            Input::Kernel(Ok(kernel)) => {
                let (command, files) = kernel.into_call();
                self.send(command, files, then);
            }
            Input::Kernel(Err(cause)) => {
                let causes = vec![cause];
                self.outcome.get_or_insert(Outcome::Refused { causes });
                self.force_stop(now, then);
            }
            Input::NotSent { id, refusal } => self.pass_on(id, Verdict::Error(refusal), then),
            Input::Tick => self.check_deadline(now, then),
        }
        (self, effects)
    }

    fn signal(&mut self, now: Instant, name: &str, then: &mut Vec<Effect>) {
        if self.machine == MachineState::Starting && self.stop == Stop::Not {
            let text = format!("{name}: there is no guest yet, stopping at once");
            then.push(Effect::Log(Level::INFO, text));
            self.stopped = true;
            self.kill(then);
        } else if self.stop == Stop::Not && self.outcome.is_none() {
            let text = format!(
                "{name}: pressing the power button, {:?} of grace",
                self.grace
            );
            then.push(Effect::Log(Level::INFO, text));
            self.ask_to_stop(now, then);
        } else {
            let text = format!("{name}: stopping at once");
            then.push(Effect::Log(Level::INFO, text));
            self.force_stop(now, then);
        }
    }

    fn note(&mut self, now: Instant, event: Event, then: &mut Vec<Effect>) {
        let last = match event {
            Event::Running => return then.push(Effect::Running),
            Event::Paused => return,
            Event::HostError(error) if error.stops => {
                let text = format!(
                    "disk {} failed on the host: the machine stands still, and tries again when it is resumed",
                    error.device
                );
                return then.push(Effect::Log(Level::WARN, text));
            }
            // The vm process logs it.
            Event::HostError(_) => return,
            Event::BootWanted => return then.push(Effect::ReadBoot),
            Event::Reset if self.exit_on_reboot => Outcome::Rebooted,
            Event::Reset => {
                return then.push(Effect::Log(Level::INFO, "the guest was reset".to_owned()));
            }
            Event::GuestPanicNotice => {
                let text = "the guest's kernel panicked and goes on".to_owned();
                return then.push(Effect::Log(Level::WARN, text));
            }
            Event::WatchdogExpired { action } => {
                let text = format!("the guest's watchdog expired: {action}");
                return then.push(Effect::Log(Level::WARN, text));
            }
            Event::ConsoleEscape => {
                let text = "escape key: stopping at once".to_owned();
                then.push(Effect::Log(Level::INFO, text));
                return self.force_stop(now, then);
            }
            Event::BootTrace { marks, guest } => {
                return then.push(Effect::BootTrace { marks, guest });
            }
            // Believed only if somebody has asked for it.
            Event::Stopped if self.saved => Outcome::Saved,
            Event::Stopped => Outcome::Stopped,
            event => match Outcome::of_last(event) {
                Some(outcome) => outcome,
                None => return,
            },
        };
        let is_dumped = matches!(last, Outcome::Crashed(_) | Outcome::Failed { .. });
        let patience = match self.crash_dump && is_dumped {
            true => DUMP_TIMEOUT,
            false => END_TIMEOUT,
        };
        self.outcome.get_or_insert(last);
        self.expect_end(now + patience);
    }

    fn expect_end(&mut self, until: Instant) {
        if !matches!(self.stop, Stop::Forced { .. } | Stop::Killed) {
            self.stop = Stop::Forced { until };
        }
    }

    /// Nothing more will be answered.
    fn close(&mut self, then: &mut Vec<Effect>) {
        self.closed = true;
        for (_, asker) in std::mem::take(&mut self.asked) {
            then.push(reply(asker, Verdict::Error(Refusal::Ended)));
        }
    }

    /// Passes the vm process's answer on to who asked, if it was not the launcher itself.
    fn pass_on(&mut self, id: u64, verdict: Verdict, then: &mut Vec<Effect>) {
        self.saved |= self.saving.remove(&id) && matches!(verdict, Verdict::Result(_));
        if let Some(asker) = self.asked.remove(&id) {
            then.push(reply(asker, verdict));
        } else if let Verdict::Error(refusal) = verdict {
            then.push(Effect::Log(Level::DEBUG, refusal.to_string()));
        }
    }

    /// Passes a client's call on. The launcher itself stops the machine, and tells the state of one
    /// that does not listen: not yet, or not any more.
    fn serve(&mut self, now: Instant, call: ClientCall, then: &mut Vec<Effect>) {
        let ClientCall {
            asker,
            command,
            descriptors,
            ..
        } = call;
        let answers = self.machine != MachineState::Starting
            && matches!(self.stop, Stop::Not | Stop::Asked { .. });
        let verdict = match command {
            Command::Stop => {
                self.force_stop(now, then);
                Verdict::Result(MachineState::ShuttingDown.into())
            }
            // The kernel is the launcher's to bring.
            Command::Boot { .. } => Verdict::Error(Refusal::NotUnderstood {
                message: "it is no command for clients".to_owned(),
            }),
            Command::Status if !answers => Verdict::Result(self.machine.into()),
            _ if self.closed => Verdict::Error(Refusal::Ended),
            // The vm process has a bound of its own, which is the launcher's.
            _ if asker.client != LAUNCHER && self.calls_of(asker.client) >= MAX_CALLS => {
                Verdict::Error(Refusal::Busy)
            }
            command => {
                let is_last = command == Command::Snapshot { stop: true };
                let id = self.send(command, descriptors, then);
                self.asked.insert(id, asker);
                self.saving.extend(is_last.then_some(id));
                return;
            }
        };
        then.push(reply(asker, verdict));
    }

    fn calls_of(&self, client: u64) -> usize {
        let calls = self.asked.values();
        calls.filter(|asker| asker.client == client).count()
    }

    fn ask_to_stop(&mut self, now: Instant, then: &mut Vec<Effect>) {
        self.stopped = true;
        // One that is paused, or about to be, could not power off.
        self.send(Command::Resume, Vec::new(), then);
        self.send(Command::PowerButton, Vec::new(), then);
        self.stop = Stop::Asked {
            until: now + self.grace,
            again: now + PRESS_AGAIN,
        };
    }

    fn force_stop(&mut self, now: Instant, then: &mut Vec<Effect>) {
        self.stopped = true;
        match self.stop {
            Stop::Not | Stop::Asked { .. } => {
                self.send(Command::Stop, Vec::new(), then);
                let until = now + STOP_TIMEOUT;
                self.stop = Stop::Forced { until };
            }
            Stop::Forced { .. } => self.kill(then),
            Stop::Killed => {}
        }
    }

    fn kill(&mut self, then: &mut Vec<Effect>) {
        self.stop = Stop::Killed;
        then.push(Effect::Kill);
    }

    fn check_deadline(&mut self, now: Instant, then: &mut Vec<Effect>) {
        match self.stop {
            Stop::Asked { until, .. } if until <= now => {
                let text = format!("the guest did not power off in {:?}", self.grace);
                then.push(Effect::Log(Level::WARN, text));
                self.force_stop(now, then);
            }
            Stop::Asked { until, again } if again <= now => {
                self.send(Command::PowerButton, Vec::new(), then);
                let again = now + PRESS_AGAIN;
                self.stop = Stop::Asked { until, again };
            }
            Stop::Forced { until } if until <= now && self.status.is_none() => {
                let text = "the vm process did not end in time: killing it".to_owned();
                then.push(Effect::Log(Level::WARN, text));
                self.kill(then);
            }
            _ => {}
        }
    }

    /// The number of the call.
    fn send(&mut self, command: Command, descriptors: Vec<OwnedFd>, then: &mut Vec<Effect>) -> u64 {
        self.last_call += 1;
        let id = self.last_call;
        then.push(Effect::Send(Call { id, command }, descriptors));
        id
    }
}

fn reply(asker: Asker, verdict: Verdict) -> Effect {
    let Asker { client, id } = asker;
    let reply = Reply { id, verdict };
    Effect::Reply { client, reply }
}

#[cfg(test)]
mod tests;
