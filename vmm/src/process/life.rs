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
//!   any of these ── power off, crash, fault, Stop ──▶ ShuttingDown ── done ──▶ Ended
//! ```
//!
//! What takes time (in parentheses, and all that looks at devices) is a [`Job`] for the
//! [operator](super::operator); one at a time. What comes meanwhile waits in line, except that the state
//! can always be asked for and the end can always come. A job is never broken off: the next begins with its
//! [`Input::Done`].

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};

use serde_json::{Value, json};

use crate::control::{
    Answer, Command, CrashReport, DiskError, Event, MachineState, Refusal, Reply, Report, Stats,
    Verdict,
};

/// Calls that may wait in line.
const MAX_WAITING: usize = 64;

/// Something that happened.
#[derive(Debug)]
pub(super) enum Input {
    /// The machine is built.
    Started,
    /// The launcher wants something.
    Call {
        id: u64,
        command: Command,
        descriptors: Vec<OwnedFd>,
    },
    /// The guest asked for the machine's end, or its restart.
    GuestPowerOff,
    GuestReset,
    /// The guest's kernel panicked, and its crash kernel takes over.
    GuestPanicNotice,
    /// The guest's kernel panicked for good.
    GuestPanicked(Box<CrashReport>),
    /// The guest, on this machine (counted from 0 by resets), cannot go on.
    GuestCrashed {
        machine: u32,
        report: Box<CrashReport>,
    },
    /// This machine cannot go on, or the vm process cannot.
    Failed {
        machine: u32,
        causes: Vec<String>,
    },
    /// The user wants the end by the console's escape key.
    ConsoleEscape,
    /// The host cannot do what the guest asked of a disk.
    DiskError(Box<DiskError>),
    /// The job that was begun last is done.
    Done(Result<Option<Box<Stats>>, JobError>),
    /// The launcher is gone.
    Alone,
}

/// Why a job was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum JobError {
    /// Nothing has changed.
    Refused(Refusal),
    /// There is no machine any more; the last event of the run.
    Fatal(Event),
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Let the new machine's vCPUs run.
    Run,
    /// Begin a job; its end will be an input.
    Begin(Job),
    /// Press the power button.
    PressPowerButton,
    /// Tell the launcher.
    Tell(Report),
    /// Leave the loop.
    End,
}

/// What takes time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Park vCPUs and devices.
    Pause,
    /// Let them go on.
    Resume,
    /// Build the machine anew, and let it run or not.
    Reset { run: bool },
    /// Look at the counters.
    Stats,
    /// Have a device obey an order of its own.
    Device { name: String, order: Value },
    /// Write the machine, which is paused, to the state file and the RAM file.
    Snapshot(Files),
    /// Complete requests in flight and tear the machine down.
    TearDown,
}

/// Descriptors that came with a call.
#[derive(Debug)]
pub(super) struct Files(pub(super) Vec<OwnedFd>);

impl PartialEq for Files {
    fn eq(&self, other: &Self) -> bool {
        let number = |fd: &OwnedFd| fd.as_raw_fd();
        self.0.iter().map(number).eq(other.0.iter().map(number))
    }
}

impl Eq for Files {}

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
    Running,
    New,
    /// No different.
    Same,
    /// No different, and then it is to end.
    Last,
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
    /// How often the machine was built anew.
    machine: u32,
    /// This machine's guest panicked and went on, which was told; it can say so without end.
    panic_noted: bool,
    /// The guest's next power-off is a reset.
    rebooting: bool,
    exit_on_reboot: bool,
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
    /// A machine that is being built; it is to start `paused` or not, and a reset of its guest ends the run
    /// or not.
    pub(super) fn new(paused: bool, exit_on_reboot: bool) -> Self {
        Self {
            phase: Phase::Starting,
            paused,
            under_way: None,
            waiting: VecDeque::new(),
            machine: 0,
            panic_noted: false,
            rebooting: false,
            exit_on_reboot,
        }
    }

    /// The state for others to see.
    pub(super) fn state(&self) -> MachineState {
        let becomes = self.under_way.as_ref().map(|job| job.becomes);
        match (self.phase, becomes) {
            (Phase::Starting, _) => MachineState::Starting,
            (Phase::ShuttingDown, _) => MachineState::ShuttingDown,
            (Phase::Ended, _) => MachineState::Ended,
            (Phase::Up, Some(Becomes::Paused)) => MachineState::Pausing,
            (Phase::Up, Some(Becomes::New)) => MachineState::Resetting,
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
        let verdict = match command {
            ref command if files.0.len() != command.descriptors() => Err(Refusal::Descriptors {
                expected: command.descriptors(),
                sent: files.0.len(),
            }),
            Command::Status => Ok(()),
            Command::Stop => {
                self.shut_down(Event::Stopped, effects);
                Ok(())
            }
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
        let is_building = (self.under_way.as_ref()).is_some_and(|job| job.becomes == Becomes::New);
        match input {
            Input::ConsoleEscape => effects.push(self.tell(Event::ConsoleEscape)),
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
            Input::DiskError(error) => {
                let stops = error.stops;
                effects.push(self.tell(Event::DiskError(*error)));
                if stops {
                    self.put_first(Waiting::Standstill);
                }
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
        while self.phase == Phase::Up && self.under_way.is_none() {
            match self.waiting.pop_front() {
                None => return,
                Some(Waiting::GuestReset) => self.reset(None, effects),
                Some(Waiting::Standstill) if self.paused => {}
                Some(Waiting::Standstill) => {
                    self.begin(None, Job::Pause, Becomes::Paused, effects);
                }
                Some(Waiting::Call { id, command, files }) => {
                    self.obey(id, command, files, effects);
                }
            }
        }
    }

    fn obey(&mut self, id: u64, command: Command, files: Files, effects: &mut Vec<Effect>) {
        match command {
            Command::Pause if !self.paused => {
                self.begin(Some(id), Job::Pause, Becomes::Paused, effects);
            }
            Command::Resume if self.paused => {
                self.begin(Some(id), Job::Resume, Becomes::Running, effects);
            }
            // It is paused first, and stays so whatever becomes of the files.
            Command::Snapshot { .. } if !self.paused => {
                self.waiting
                    .push_front(Waiting::Call { id, command, files });
                self.begin(None, Job::Pause, Becomes::Paused, effects);
            }
            Command::Snapshot { stop } => {
                let becomes = if stop { Becomes::Last } else { Becomes::Same };
                self.begin(Some(id), Job::Snapshot(files), becomes, effects);
            }
            Command::Reset => self.reset(Some(id), effects),
            Command::Stats => self.begin(Some(id), Job::Stats, Becomes::Same, effects),
            Command::SetLink { nic: name, up } => {
                let order = json!({"command": "setLink", "up": up});
                let job = Job::Device { name, order };
                self.begin(Some(id), job, Becomes::Same, effects);
            }
            Command::Device { name, order } => {
                let job = Job::Device { name, order };
                self.begin(Some(id), job, Becomes::Same, effects);
            }
            Command::PowerButton | Command::Reboot => {
                self.rebooting = command == Command::Reboot;
                effects.push(Effect::PressPowerButton);
                effects.push(self.reply(id, Ok(())));
            }
            // Is so already, or never waits.
            Command::Pause | Command::Resume | Command::Status | Command::Stop => {
                effects.push(self.reply(id, Ok(())));
            }
        }
    }

    fn reset(&mut self, call: Option<u64>, effects: &mut Vec<Effect>) {
        if self.exit_on_reboot {
            self.shut_down(Event::Reset, effects);
            effects.extend(call.map(|id| self.reply(id, Ok(()))));
            return;
        }
        let run = !self.paused;
        self.begin(call, Job::Reset { run }, Becomes::New, effects);
    }

    fn begin(&mut self, call: Option<u64>, job: Job, becomes: Becomes, effects: &mut Vec<Effect>) {
        self.under_way = Some(UnderWay { call, becomes });
        effects.push(Effect::Begin(job));
    }

    fn done(&mut self, result: Result<Option<Box<Stats>>, JobError>, effects: &mut Vec<Effect>) {
        let Some(UnderWay { call, becomes }) = self.under_way.take() else {
            return;
        };
        let stats = match result {
            Ok(stats) => stats,
            Err(JobError::Refused(refusal)) => {
                effects.extend(call.map(|id| self.reply(id, Err(refusal))));
                self.go_on(effects);
                return;
            }
            Err(JobError::Fatal(last)) => {
                effects.extend(call.map(|id| self.reply(id, Err(Refusal::Ended))));
                self.shut_down(last, effects);
                self.go_on(effects);
                return;
            }
        };
        match becomes {
            Becomes::Paused => self.paused = true,
            Becomes::Running => self.paused = false,
            Becomes::New => {
                self.machine += 1;
                self.panic_noted = false;
                self.rebooting = false;
            }
            Becomes::TornDown => {
                self.phase = Phase::Ended;
                effects.push(Effect::End);
                return;
            }
            Becomes::Same | Becomes::Last => {}
        }
        let event = match becomes {
            Becomes::Paused => Some(Event::Paused),
            Becomes::Running => Some(Event::Running),
            Becomes::New => Some(Event::Reset),
            Becomes::Same | Becomes::Last | Becomes::TornDown => None,
        };
        if self.phase == Phase::Up {
            effects.extend(event.map(|event| self.tell(event)));
        }
        let state = self.state();
        let answer = Answer { state, stats };
        effects.extend(call.map(|id| report(id, Verdict::Result(answer))));
        if becomes == Becomes::Last {
            self.shut_down(Event::Stopped, effects);
        }
        self.go_on(effects);
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
        effects.push(self.tell(last));
        for waiting in std::mem::take(&mut self.waiting) {
            if let Waiting::Call { id, .. } = waiting {
                effects.push(self.reply(id, Err(Refusal::Ended)));
            }
        }
        self.tear_down(effects);
    }

    fn tear_down(&mut self, effects: &mut Vec<Effect>) {
        if self.under_way.is_none() {
            self.begin(None, Job::TearDown, Becomes::TornDown, effects);
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
