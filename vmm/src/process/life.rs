//! The life of a machine as the vm process sees it, without the machine: what may follow on what.
//!
//! ```text
//!                        Pause             done
//!              ┌──────────────▶ (pausing) ──────┐
//!   Started    │                                ▼
//!  Starting ─▶ Running ◀─────────────────────▶ Paused
//!              │   ▲          Resume            │  ▲
//!        Reset │   │ done                 Reset │  │ done
//!              ▼   │                            ▼  │
//!             (resetting)                   (resetting)
//!
//! A machine that boots from its disk is torn down first, tells [`Event::BootWanted`], and is built when
//! [`Command::Boot`] has come.
//!
//!   any of these ── power off, crash, fault, Stop ──▶ ShuttingDown ── done ──▶ Ended
//! ```
//!
//! What takes time (in parentheses, and all that looks at devices) is a [`Job`] for the
//! [operator](super::operator); one at a time. What comes meanwhile waits in line, except that the state
//! can always be asked for and the end can always come. A job is never broken off: the next begins with its
//! [`Input::Done`].
//!
//! A device leaves when the guest gives it back, which no job waits for:
//!
//! ```text
//!   Detach ─▶ (Ask) ─▶ leaving ── GuestEjected ─▶ (RemoveEjected) ─▶ answered
//!                         ├────── Late ─▶ (Keep) ─▶ refused: the device stays
//!                         └────── a reset, which leaves it out ────▶ answered
//! ```
//!
//! What nobody waits for (a failed disk's standstill, a device that was given back) is tried [again](Input::Again) where it is
//! refused: the host may have had no thread.

mod done;
mod leaving;
mod obeying;
mod terms;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use self::leaving::Leaving;
pub(super) use self::terms::{Effect, Files, Input, Job, JobError, NextBoot, Outcome};
use crate::control::{Answer, Command, Event, MachineState, Refusal, Reply, Report, Verdict};
use crate::fallbacks::Fallbacks;

/// Calls that may wait in line.
const MAX_WAITING: usize = 64;

/// What is to be done when its turn comes.
#[derive(Debug)]
enum Waiting {
    Call {
        id: u64,
        command: Command,
        files: Files,
    },
    GuestReset,
    /// The machine is to stand still, whoever may let it go on.
    Standstill,
    GuestEjected,
    Late {
        call: u64,
    },
}

/// A job under way and who waits for it.
#[derive(Debug)]
struct UnderWay {
    /// The call to answer; none if the guest caused it.
    call: Option<u64>,
    /// What the machine becomes by it.
    becomes: Becomes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    Paused,
    /// The same, for the call that waits in line.
    PausedFirst,
    Running,
    New,
    /// Torn down, until there is a kernel.
    Halted,
    /// No different.
    Same,
    /// No different, but it stands still meanwhile.
    Dumped,
    /// No different, and then it is to end.
    Last,
    /// No different yet; the call is answered when a device has left.
    Asked,
    /// The same, as before.
    Awaited,
    TornDown,
}

/// Where the machine is in its life.
#[derive(Debug, Default)]
pub(super) struct Life {
    phase: Phase,
    /// The vCPUs stand still, or will when the job is done that builds a machine.
    paused: bool,
    under_way: Option<UnderWay>,
    waiting: VecDeque<Waiting>,
    /// What was refused and is tried again.
    again: Vec<Waiting>,
    /// By the calls that wait for it.
    leaving: BTreeMap<u64, Leaving>,
    /// It ends because of a crash.
    crashed: bool,
    /// A reset waits for a kernel; the call to answer then, if there is one.
    wants_boot: Option<Option<u64>>,
    /// How often the machine was built anew.
    machine: u32,
    /// This machine's guest panicked and went on, which was told; it can say so without end.
    panic_noted: bool,
    /// The guest's next power-off is a reset.
    rebooting: bool,
    exit_on_reboot: bool,
    boots_from_disk: bool,
    fallbacks: Arc<Fallbacks>,
    vsock_cid: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Starting,
    Up,
    ShuttingDown,
    Ended,
}

impl Life {
    /// A machine that is being built; it is to start `paused` or not, a reset of its guest ends the run
    /// or not, and its kernel is on a disk or not.
    pub(super) fn new(paused: bool, exit_on_reboot: bool, boots_from_disk: bool) -> Self {
        Self {
            phase: Phase::Starting,
            paused,
            under_way: None,
            waiting: VecDeque::new(),
            again: Vec::new(),
            leaving: BTreeMap::new(),
            crashed: false,
            wants_boot: None,
            machine: 0,
            panic_noted: false,
            rebooting: false,
            exit_on_reboot,
            boots_from_disk,
            fallbacks: Arc::default(),
            vsock_cid: None,
        }
    }

    /// Tells these to who asks for the state.
    pub(super) fn telling(self, fallbacks: Arc<Fallbacks>, vsock_cid: Option<u32>) -> Self {
        Self {
            fallbacks,
            vsock_cid,
            ..self
        }
    }

    /// The state for others to see.
    pub(super) fn state(&self) -> MachineState {
        let becomes = self.under_way.as_ref().map(|job| job.becomes);
        match (self.phase, becomes) {
            (Phase::Starting, _) => MachineState::Starting,
            (Phase::ShuttingDown, _) => MachineState::ShuttingDown,
            (Phase::Ended, _) => MachineState::Ended,
            (Phase::Up, Some(Becomes::Paused | Becomes::PausedFirst)) => MachineState::Pausing,
            (Phase::Up, Some(Becomes::Dumped)) => MachineState::Paused,
            (Phase::Up, Some(Becomes::New | Becomes::Halted)) => MachineState::Resetting,
            (Phase::Up, _) if self.wants_boot.is_some() => MachineState::Resetting,
            (Phase::Up, _) if self.paused => MachineState::Paused,
            (Phase::Up, _) => MachineState::Running,
        }
    }

    /// How often the machine was built anew.
    pub(super) fn machine(&self) -> u32 {
        self.machine
    }

    /// What follows on an input.
    pub(super) fn step(mut self, input: Input) -> (Self, Vec<Effect>) {
        let mut effects = Vec::new();
        match (self.phase, input) {
            (_, Input::Alone) => {
                self.phase = Phase::Ended;
                effects.push(Effect::End);
            }
            (Phase::Starting, Input::Started) => self.started(&mut effects),
            (
                _,
                Input::Call {
                    id,
                    command,
                    descriptors,
                },
            ) => self.call(id, command, Files(descriptors), &mut effects),
            (_, Input::Done(result)) => self.done(result, &mut effects),
            (Phase::Up, input) => self.happened(input, &mut effects),
            // A machine that ends has nothing to say, and one that is built no guest.
            _ => {}
        }
        (self, effects)
    }

    fn started(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Up;
        if self.paused {
            effects.push(self.tell(Event::Paused));
        } else {
            effects.push(Effect::Run);
            effects.push(self.tell(Event::Running));
        }
        self.next(effects);
    }

    fn call(&mut self, id: u64, command: Command, files: Files, effects: &mut Vec<Effect>) {
        // Where that is for a device to say, any number will do here.
        let expected = command.descriptors().unwrap_or(files.0.len());
        let verdict = match command {
            _ if expected != files.0.len() => Err(Refusal::Descriptors {
                expected,
                sent: files.0.len(),
            }),
            Command::Status => {
                let mut answer = Answer::from(self.state());
                answer.fallbacks = self.fallbacks.all();
                answer.vsock_cid = self.vsock_cid;
                effects.push(report(id, Verdict::Result(answer)));
                return;
            }
            Command::Stop => {
                self.shut_down(Event::Stopped, effects);
                Ok(())
            }
            Command::Boot {
                cmdline, kernel, ..
            } => self.boot(kernel, cmdline, files, effects),
            _ if matches!(self.phase, Phase::ShuttingDown | Phase::Ended) => Err(Refusal::Ended),
            _ if self.waiting.len() >= MAX_WAITING => Err(Refusal::Busy),
            command => {
                self.waiting.push_back(Waiting::Call { id, command, files });
                self.next(effects);
                return;
            }
        };
        effects.push(self.reply(id, verdict));
    }

    /// What the machine or its user wants.
    fn happened(&mut self, input: Input, effects: &mut Vec<Effect>) {
        let becomes = self.under_way.as_ref().map(|job| job.becomes);
        let is_building =
            matches!(becomes, Some(Becomes::New | Becomes::Halted)) || self.wants_boot.is_some();
        match input {
            Input::ConsoleEscape => effects.push(self.tell(Event::ConsoleEscape)),
            Input::Killed => self.shut_down(Event::Stopped, effects),
            Input::Failed { machine, causes } if machine == self.machine => {
                self.shut_down(Event::InternalError { causes }, effects);
            }
            // The words of a guest whose machine is being torn down.
            _ if is_building => {}
            Input::GuestPowerOff if self.rebooting => self.happened(Input::GuestReset, effects),
            Input::GuestPowerOff => self.shut_down(Event::GuestShutdown, effects),
            Input::GuestPanicked(report) => self.shut_down(Event::GuestCrashed(*report), effects),
            Input::GuestReset if self.exit_on_reboot => self.shut_down(Event::Reset, effects),
            Input::GuestReset => {
                self.put_first(Waiting::GuestReset);
                self.next(effects);
            }
            Input::WatchdogExpired(action) => self.watchdog_expired(action, effects),
            Input::HostError(error) => {
                let stops = error.stops;
                effects.push(self.tell(Event::HostError(*error)));
                if stops {
                    self.put_first(Waiting::Standstill);
                }
                self.next(effects);
            }
            Input::GuestEjected => {
                self.put_first(Waiting::GuestEjected);
                self.next(effects);
            }
            Input::Again => {
                for refused in std::mem::take(&mut self.again) {
                    self.put_first(refused);
                }
                self.next(effects);
            }
            Input::Late { call } => {
                self.waiting.push_front(Waiting::Late { call });
                self.next(effects);
            }
            Input::GuestPanicNotice if !self.panic_noted => {
                self.panic_noted = true;
                effects.push(self.tell(Event::GuestPanicNotice));
            }
            Input::GuestCrashed { machine, report } if machine == self.machine => {
                self.shut_down(Event::GuestCrashed(*report), effects);
            }
            _ => {}
        }
    }

    /// Once: a guest may cause it without end.
    fn put_first(&mut self, wanted: Waiting) {
        let kind = std::mem::discriminant(&wanted);
        if !(self.waiting.iter()).any(|other| std::mem::discriminant(other) == kind) {
            self.waiting.push_front(wanted);
        }
    }

    /// Begins what waits, as far as that takes no time.
    fn next(&mut self, effects: &mut Vec<Effect>) {
        while self.phase == Phase::Up && self.under_way.is_none() && self.wants_boot.is_none() {
            match self.waiting.pop_front() {
                None => return,
                Some(Waiting::GuestReset) => self.reset(None, effects),
                Some(Waiting::Standstill) if self.paused => {}
                Some(Waiting::Standstill) => {
                    self.begin(None, Job::Pause, Becomes::Paused, effects);
                }
                Some(Waiting::GuestEjected) => {
                    self.begin(None, Job::RemoveEjected, Becomes::Same, effects);
                }
                Some(Waiting::Late { call }) => self.late(call, effects),
                Some(Waiting::Call { id, command, files }) => {
                    self.obey(id, command, files, effects);
                }
            }
        }
    }

    fn begin(&mut self, call: Option<u64>, job: Job, becomes: Becomes, effects: &mut Vec<Effect>) {
        self.under_way = Some(UnderWay { call, becomes });
        effects.push(Effect::Begin(job));
    }

    /// After a job.
    fn go_on(&mut self, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::ShuttingDown => self.tear_down(effects),
            _ => self.next(effects),
        }
    }

    /// Tells how the run ended, which nothing changes any more, and ends it.
    fn shut_down(&mut self, last: Event, effects: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::ShuttingDown | Phase::Ended) {
            return;
        }
        self.phase = Phase::ShuttingDown;
        self.crashed = matches!(last, Event::GuestCrashed(_) | Event::InternalError { .. });
        effects.push(self.tell(last));
        if let Some(call) = self.wants_boot.take() {
            effects.extend(call.map(|id| self.reply(id, Err(Refusal::Ended))));
        }
        for waiting in std::mem::take(&mut self.waiting) {
            if let Waiting::Call { id, .. } = waiting {
                effects.push(self.reply(id, Err(Refusal::Ended)));
            }
        }
        self.answer_leaving(Err(Refusal::Ended), effects);
        self.tear_down(effects);
    }

    fn tear_down(&mut self, effects: &mut Vec<Effect>) {
        if self.under_way.is_none() {
            let crashed = self.crashed;
            self.begin(None, Job::TearDown { crashed }, Becomes::TornDown, effects);
        }
    }

    fn tell(&self, event: Event) -> Effect {
        Effect::Tell(event.with(self.state()))
    }

    fn reply(&self, id: u64, verdict: Result<(), Refusal>) -> Effect {
        report(
            id,
            match verdict {
                Ok(()) => Verdict::Result(self.state().into()),
                Err(refusal) => Verdict::Error(refusal),
            },
        )
    }
}

fn report(id: u64, verdict: Verdict) -> Effect {
    Effect::Tell(Report::Reply(Reply { id, verdict }))
}

#[cfg(test)]
mod tests;
