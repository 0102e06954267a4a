use std::collections::BTreeMap;

use devices::virtio::registry::AnyOptions;
use devices::virtio::rng::RngOptions;
use devices::watchdog::WatchdogAction;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::control::{HostError, VcpuRegisters};

/// What a machine does with effects, and what it heard.
struct Machine {
    life: Life,
    running: bool,
    job: Option<Job>,
    /// Devices that the guest is asked for, and those that it has given back.
    asked: Vec<String>,
    ejected: Vec<String>,
    /// Calls that will be late.
    expected: Vec<u64>,
    /// Something is tried again.
    again: bool,
    replies: BTreeMap<u64, Verdict>,
    events: Vec<Event>,
    ended: bool,
}

impl Machine {
    fn new(paused: bool, exit_on_reboot: bool) -> Self {
        Self::of(Life::new(paused, exit_on_reboot, false))
    }

    fn of(life: Life) -> Self {
        let mut machine = Self {
            life,
            running: false,
            job: None,
            asked: Vec::new(),
            ejected: Vec::new(),
            expected: Vec::new(),
            again: false,
            replies: BTreeMap::new(),
            events: Vec::new(),
            ended: false,
        };
        machine.input(Input::Started);
        machine
    }

    fn input(&mut self, input: Input) {
        let life = std::mem::replace(&mut self.life, Life::new(false, false, false));
        let (life, effects) = life.step(input);
        self.life = life;
        for effect in effects {
            assert!(!self.ended, "nothing follows the end: {effect:?}");
            match effect {
                Effect::Run => self.running = true,
                Effect::Begin(job) => {
                    assert_eq!(self.job, None, "one job at a time");
                    self.job = Some(job);
                }
                Effect::PressPowerButton => {}
                Effect::Expect { call, .. } => self.expected.push(call),
                Effect::TryAgain(_) => self.again = true,
                Effect::Tell(Report::Notice(notice)) => self.hear(notice.event, notice.state),
                Effect::Tell(Report::Reply(Reply { id, verdict })) => {
                    let before = self.replies.insert(id, verdict);
                    assert_eq!(before, None, "call {id} is answered once");
                }
                Effect::End => self.ended = true,
            }
        }
    }

    fn hear(&mut self, event: Event, state: MachineState) {
        if !matches!(
            event,
            Event::ConsoleEscape
                | Event::GuestPanicNotice
                | Event::WatchdogExpired { .. }
                | Event::HostError(_)
        ) {
            let expected = match event {
                Event::Running => MachineState::Running,
                Event::Paused => MachineState::Paused,
                Event::BootWanted => MachineState::Resetting,
                Event::Reset if !self.life.exit_on_reboot => match self.running {
                    true => MachineState::Running,
                    false => MachineState::Paused,
                },
                _ => MachineState::ShuttingDown,
            };
            assert_eq!(state, expected, "{event:?}");
        }
        self.events.push(event);
    }

    fn call(&mut self, id: u64, command: Command) {
        self.input(Input::Call {
            id,
            command,
            descriptors: Vec::new(),
        });
    }

    /// The job under way is done, if there is one.
    fn finish(&mut self, result: Result<(), JobError>) {
        let Some(job) = self.job.take() else { return };
        let result = match (result, job) {
            (_, Job::TearDown { .. }) => Ok(Outcome::Done),
            (Err(JobError::Refused(refusal)), Job::RemoveEjected) => {
                Err(JobError::Refused(refusal))
            }
            (_, Job::RemoveEjected) => Ok(Outcome::Gone(std::mem::take(&mut self.ejected))),
            (_, Job::Keep { name }) => self.keep(&name),
            // The machine is taken down first: what follows succeeds, or is the end.
            (Err(JobError::Refused(_)), job @ (Job::Reset { .. } | Job::Halt)) => {
                Ok(self.succeed(job))
            }
            (Err(error), _) => Err(error),
            (Ok(()), job) => Ok(self.succeed(job)),
        };
        self.input(Input::Done(result));
    }

    fn keep(&mut self, name: &String) -> Result<Outcome, JobError> {
        let asked = self.asked.len();
        self.asked.retain(|asked| asked != name);
        match self.asked.len() == asked {
            true => Ok(Outcome::Done),
            false => Err(JobError::Refused(Refusal::Busy)),
        }
    }

    fn succeed(&mut self, job: Job) -> Outcome {
        match job {
            Job::Stats => return Outcome::Stats(Default::default()),
            Job::Registers { running } => {
                assert_eq!(running, self.running);
                return Outcome::Registers(vec![VcpuRegisters::default()]);
            }
            Job::Pause => self.running = false,
            Job::Resume => self.running = true,
            Job::Halt => self.running = false,
            Job::Reset { run, without, .. } => {
                self.running = run;
                let mut gone = std::mem::take(&mut self.asked);
                gone.append(&mut self.ejected);
                gone.sort();
                let mut without = without;
                without.sort();
                assert_eq!(without, gone, "what the guest was asked for is left out");
            }
            Job::Ask { name } => self.asked.push(name),
            _ => {}
        }
        Outcome::Done
    }

    /// The guest gives back what it was asked for.
    fn eject(&mut self) {
        let mut asked = std::mem::take(&mut self.asked);
        if !asked.is_empty() {
            self.ejected.append(&mut asked);
            self.input(Input::GuestEjected);
        }
    }

    /// The next call is late.
    fn be_late(&mut self) {
        if !self.expected.is_empty() {
            let call = self.expected.remove(0);
            self.input(Input::Late { call });
        }
    }

    fn try_again(&mut self) {
        if std::mem::take(&mut self.again) {
            self.input(Input::Again);
        }
    }

    fn finish_all(&mut self) {
        while self.job.is_some() {
            self.finish(Ok(()));
        }
    }

    fn state_of(&self, id: u64) -> Option<MachineState> {
        match self.replies.get(&id)? {
            Verdict::Result(answer) => Some(answer.state),
            Verdict::Error(_) => None,
        }
    }
}

/// The guest powers off as it was told to, and is there again; the next time it is not.
#[test]
fn a_reboot_makes_one_power_off_a_reset() {
    let mut machine = Machine::new(false, false);
    machine.call(1, Command::Reboot);
    machine.input(Input::GuestPowerOff);
    machine.finish_all();
    assert_eq!(machine.events, [Event::Running, Event::Reset]);
    machine.input(Input::GuestPowerOff);
    assert_eq!(machine.events.last(), Some(&Event::GuestShutdown));

    let mut machine = Machine::new(false, false);
    machine.call(1, Command::Reboot);
    machine.call(2, Command::PowerButton);
    machine.input(Input::GuestPowerOff);
    assert_eq!(
        machine.events.last(),
        Some(&Event::GuestShutdown),
        "taken back"
    );
}

fn disk_error(stops: bool) -> Input {
    Input::HostError(Box::new(HostError {
        device: "root".into(),
        operation: "write".into(),
        offset: 4096,
        errno: libc::ENOSPC,
        message: String::new(),
        untold: 0,
        stops,
    }))
}

#[test]
fn a_machine_stands_still_for_a_disk_until_it_is_told_to_go_on() {
    let mut machine = Machine::new(false, false);
    machine.input(disk_error(false));
    assert!(machine.running && machine.job.is_none());
    // Two disks at once, while something else is done.
    machine.call(1, Command::Stats);
    machine.input(disk_error(true));
    machine.input(disk_error(true));
    machine.finish_all();
    assert_eq!(machine.life.state(), MachineState::Paused);
    // It fails again while it goes on.
    machine.call(2, Command::Resume);
    machine.input(disk_error(true));
    machine.finish_all();
    assert_eq!(machine.life.state(), MachineState::Paused);
    machine.call(3, Command::Resume);
    machine.finish_all();
    assert_eq!(machine.state_of(3), Some(MachineState::Running));
    let paused = machine
        .events
        .iter()
        .filter(|event| **event == Event::Paused);
    assert_eq!(paused.count(), 2);
}

/// As where the host has no thread for it.
#[test]
fn a_standstill_that_is_refused_is_tried_again() {
    let refused = || Err(JobError::Refused(Refusal::Busy));
    let mut machine = Machine::new(false, false);
    machine.input(disk_error(true));
    machine.finish(refused());
    assert_eq!((&machine.job, machine.again), (&None, true));
    assert_eq!(machine.life.state(), MachineState::Running);
    machine.try_again();
    machine.finish(refused());
    machine.try_again();
    machine.finish_all();
    assert_eq!(machine.life.state(), MachineState::Paused);
    // Who has it go on has seen to the disk.
    machine.call(1, Command::Resume);
    machine.finish_all();
    machine.input(disk_error(true));
    machine.finish(refused());
    machine.call(2, Command::Pause);
    machine.call(3, Command::Resume);
    machine.finish_all();
    machine.try_again();
    machine.finish_all();
    assert_eq!(machine.life.state(), MachineState::Running);
    // It is not the snapshot's pause that was refused.
    machine.input(disk_error(true));
    let (state, ram) = std::io::pipe().expect("pipe");
    machine.input(Input::Call {
        id: 4,
        command: Command::Snapshot { stop: false },
        descriptors: vec![state.into(), ram.into()],
    });
    machine.finish(refused());
    assert!(!machine.replies.contains_key(&4));
    machine.finish_all();
    assert_eq!(machine.state_of(4), Some(MachineState::Paused));
}

#[test]
fn a_reset_leaves_a_paused_machine_paused() {
    let mut machine = Machine::new(false, false);
    machine.call(1, Command::Pause);
    machine.call(2, Command::Status);
    machine.call(3, Command::Reset);
    machine.call(4, Command::Status);
    machine.finish_all();
    machine.call(5, Command::Status);
    machine.call(6, Command::Resume);
    machine.finish_all();
    machine.call(7, Command::Status);
    let states: Vec<_> = (1..=7).map(|id| machine.state_of(id)).collect();
    assert_eq!(
        states,
        [
            MachineState::Paused,
            MachineState::Pausing,
            MachineState::Paused,
            MachineState::Pausing,
            MachineState::Paused,
            MachineState::Running,
            MachineState::Running
        ]
        .map(Some)
    );
    assert!(machine.running);
}

/// It stands still for a dump, and goes on unless somebody had it stand still before or has meanwhile.
#[test]
fn a_dump_is_of_a_machine_that_stands_still() {
    let mut machine = Machine::new(false, false);
    let dump = |machine: &mut Machine, id| {
        let file = tempfile::tempfile().expect("a file");
        machine.input(Input::Call {
            id,
            command: Command::Dump,
            descriptors: vec![file.into()],
        });
    };
    let is_dump = |machine: &Machine, is: bool| matches!(machine.job, Some(Job::Dump { running, .. }) if running == is);
    dump(&mut machine, 1);
    assert!(is_dump(&machine, true));
    assert_eq!(machine.life.state(), MachineState::Paused);
    machine.call(2, Command::Pause);
    machine.finish(Ok(()));
    assert_eq!(machine.state_of(1), Some(MachineState::Running));
    machine.finish_all();
    dump(&mut machine, 3);
    assert!(is_dump(&machine, false));
    machine.finish_all();
    let states = [2, 3].map(|id| machine.state_of(id));
    assert_eq!(states, [Some(MachineState::Paused); 2]);
    dump(&mut machine, 4);
    let causes = Vec::new();
    machine.finish(Err(JobError::Refused(Refusal::Failed { causes })));
    assert_eq!(machine.state_of(4), None, "it failed");
    machine.call(5, Command::Dump);
    assert_eq!(machine.state_of(5), None, "it has no file");
}

/// It is not begun again and again.
#[test]
fn a_snapshot_whose_pause_is_refused_is_refused() {
    let mut machine = Machine::new(false, false);
    machine.finish_all();
    let (state, ram) = std::io::pipe().expect("pipe");
    machine.input(Input::Call {
        id: 1,
        command: Command::Snapshot { stop: false },
        descriptors: vec![state.into(), ram.into()],
    });
    assert_eq!(machine.job, Some(Job::Pause));
    machine.finish(Err(JobError::Refused(Refusal::Busy)));
    assert_eq!((&machine.job, machine.state_of(1)), (&None, None));
    assert!(machine.replies.contains_key(&1), "it is answered");
    assert_eq!(machine.life.state(), MachineState::Running);
}

#[test]
fn a_machine_that_has_crashed_is_dumped_and_another_is_not() {
    for (end, crashed) in [
        (Input::GuestPanicked(Box::default()), true),
        (Input::GuestPowerOff, false),
    ] {
        let mut machine = Machine::new(false, false);
        machine.input(end);
        assert_eq!(machine.job, Some(Job::TearDown { crashed }));
    }
}

#[test]
fn how_a_run_ended_is_decided_once() {
    let crash = || Input::GuestCrashed {
        machine: 0,
        report: Box::default(),
    };
    let failed = || Input::Failed {
        machine: 0,
        causes: Vec::new(),
    };
    let stop = || Input::Call {
        id: 9,
        command: Command::Stop,
        descriptors: Vec::new(),
    };
    let ends: [(fn() -> Input, Event); 2] = [
        (|| Input::GuestPowerOff, Event::GuestShutdown),
        (
            || Input::Failed {
                machine: 0,
                causes: Vec::new(),
            },
            Event::InternalError { causes: Vec::new() },
        ),
    ];
    for (first, event) in ends {
        for second in [crash(), failed(), stop(), Input::GuestPowerOff] {
            let mut machine = Machine::new(false, false);
            machine.input(first());
            machine.input(second);
            machine.finish_all();
            assert_eq!(machine.events, [Event::Running, event.clone()]);
            assert!(machine.ended);
        }
    }
}

#[test]
fn the_end_comes_while_a_job_takes_its_time_and_waits_for_it() {
    let mut machine = Machine::new(false, false);
    machine.call(1, Command::Pause);
    machine.call(2, Command::Stats);
    machine.call(3, Command::Stop);
    assert_eq!(machine.events.last(), Some(&Event::Stopped));
    assert_eq!(machine.state_of(3), Some(MachineState::ShuttingDown));
    assert_eq!(machine.replies[&2], Verdict::Error(Refusal::Ended));
    assert_eq!(machine.job, Some(Job::Pause));
    machine.finish(Ok(()));
    assert_eq!(machine.job, Some(Job::TearDown { crashed: false }));
    assert!(!machine.ended);
    machine.finish(Ok(()));
    assert!(machine.ended);
}

#[test]
fn a_watchdog_does_what_it_was_told() {
    let expired = |action| {
        let mut machine = Machine::new(false, false);
        machine.input(Input::WatchdogExpired(action));
        machine
    };
    let machine = expired(WatchdogAction::Reset);
    assert!(matches!(machine.job, Some(Job::Reset { run: true, .. })));
    let machine = expired(WatchdogAction::Poweroff);
    assert_eq!(machine.events.last(), Some(&Event::GuestShutdown));
    assert_eq!(machine.job, Some(Job::TearDown { crashed: false }));
    let machine = expired(WatchdogAction::Shutdown);
    let action = WatchdogAction::Shutdown;
    assert_eq!(
        machine.events.last(),
        Some(&Event::WatchdogExpired { action })
    );
    assert_eq!(machine.life.state(), MachineState::Running);
}

#[test]
fn words_of_a_machine_that_is_no_more_are_not_heard() {
    let mut machine = Machine::new(false, false);
    machine.input(Input::GuestReset);
    machine.input(Input::GuestPowerOff);
    machine.finish(Ok(()));
    machine.input(Input::GuestCrashed {
        machine: 0,
        report: Box::default(),
    });
    assert_eq!(machine.life.state(), MachineState::Running);
    machine.input(Input::GuestCrashed {
        machine: 1,
        report: Box::default(),
    });
    assert_eq!(machine.life.state(), MachineState::ShuttingDown);
}

#[test]
fn descriptors_that_nobody_asked_for_are_refused() {
    let mut machine = Machine::new(false, false);
    let (reader, _) = std::io::pipe().expect("pipe");
    machine.input(Input::Call {
        id: 1,
        command: Command::Pause,
        descriptors: vec![reader.into()],
    });
    let (expected, sent) = (0, 1);
    let refusal = Refusal::Descriptors { expected, sent };
    assert_eq!(machine.replies[&1], Verdict::Error(refusal));
    assert_eq!(machine.job, None);
}

#[test]
fn a_machine_that_cannot_be_built_anew_ends_the_run() {
    let mut machine = Machine::new(false, false);
    machine.call(1, Command::Reset);
    let last = Event::InternalError { causes: Vec::new() };
    machine.finish(Err(JobError::Fatal(last.clone())));
    assert_eq!(machine.replies[&1], Verdict::Error(Refusal::Ended));
    assert_eq!(machine.events.last(), Some(&last));
    machine.finish_all();
    assert!(machine.ended);
}

fn detach(name: &str) -> Command {
    let (name, seconds) = (name.to_owned(), 5);
    Command::Detach { name, seconds }
}

#[test]
fn a_device_is_gone_when_the_guest_has_given_it_back() {
    let mut machine = Machine::new(false, false);
    machine.call(1, detach("a"));
    machine.call(2, detach("a"));
    machine.finish_all();
    assert!(!machine.replies.contains_key(&1), "the guest has it");
    assert!(machine.state_of(2).is_none(), "once is enough");
    machine.call(3, Command::Pause);
    machine.call(4, Command::Resume);
    machine.finish_all();
    assert_eq!(machine.state_of(4), Some(MachineState::Running));
    machine.eject();
    assert_eq!(machine.job, Some(Job::RemoveEjected));
    assert!(!machine.replies.contains_key(&1), "requests in flight");
    machine.finish_all();
    assert_eq!(machine.state_of(1), Some(MachineState::Running));
    machine.be_late();
    assert_eq!(machine.job, None, "nobody waits any more");
}

/// As where the host has no thread for it.
#[test]
fn a_device_that_was_given_back_goes_at_the_next_try() {
    let mut machine = Machine::new(false, false);
    machine.call(1, detach("a"));
    machine.finish_all();
    machine.eject();
    machine.finish(Err(JobError::Refused(Refusal::Busy)));
    assert!(machine.job.is_none() && !machine.replies.contains_key(&1));
    machine.try_again();
    machine.finish_all();
    assert_eq!(machine.state_of(1), Some(MachineState::Running));
}

#[test]
fn a_device_that_is_not_given_back_stays() {
    let mut machine = Machine::new(false, false);
    machine.call(1, detach("a"));
    machine.finish_all();
    machine.be_late();
    machine.finish_all();
    assert_eq!(machine.replies[&1], Verdict::Error(Refusal::Busy));
    // Given back in the last moment.
    machine.call(2, detach("a"));
    machine.finish_all();
    machine.ejected.append(&mut machine.asked);
    machine.be_late();
    machine.finish_all();
    assert!(!machine.replies.contains_key(&2));
    machine.input(Input::GuestEjected);
    machine.finish_all();
    assert_eq!(machine.state_of(2), Some(MachineState::Running));
}

#[test]
fn a_reset_and_the_end_answer_who_waits_for_a_device() {
    let mut machine = Machine::new(false, false);
    machine.call(1, detach("a"));
    machine.finish_all();
    machine.input(Input::GuestReset);
    machine.be_late();
    machine.finish_all();
    assert_eq!(machine.state_of(1), Some(MachineState::Running));
    machine.call(2, detach("b"));
    machine.finish_all();
    machine.call(3, detach("c"));
    machine.call(4, Command::Stop);
    machine.finish_all();
    for id in [2, 3] {
        assert_eq!(machine.replies[&id], Verdict::Error(Refusal::Ended));
    }
}

fn boot() -> Command {
    Command::Boot {
        cmdline: "quiet".to_owned(),
        kernel: "vmlinuz".to_owned(),
        initrd: false,
    }
}

impl Machine {
    /// The launcher brings a kernel.
    fn bring(&mut self, id: u64) {
        let (reader, _) = std::io::pipe().expect("pipe");
        self.input(Input::Call {
            id,
            command: boot(),
            descriptors: vec![reader.into()],
        });
    }
}

#[test]
fn a_reset_waits_for_the_kernel_on_the_disk() {
    let mut machine = Machine::of(Life::new(false, false, true));
    machine.bring(1);
    assert_eq!(machine.state_of(1), None, "nobody waits for it");
    machine.call(2, Command::Reset);
    machine.call(3, Command::Pause);
    assert_eq!(machine.job, Some(Job::Halt));
    machine.finish(Ok(()));
    assert_eq!(machine.events.last(), Some(&Event::BootWanted));
    // Words of what is no more, and calls that wait for what is to come.
    machine.input(Input::GuestPowerOff);
    machine.call(4, Command::Status);
    assert_eq!(machine.state_of(4), Some(MachineState::Resetting));
    assert_eq!(machine.job, None);
    machine.bring(5);
    assert_eq!(machine.state_of(5), Some(MachineState::Resetting));
    assert!(
        matches!(&machine.job, Some(Job::Reset { run: true, boot: Some(boot), without }) if boot.cmdline == "quiet" && without.is_empty())
    );
    machine.finish(Ok(()));
    assert_eq!(machine.state_of(2), Some(MachineState::Running));
    machine.finish_all();
    assert_eq!(machine.state_of(3), Some(MachineState::Paused));
}

#[test]
fn the_end_does_not_wait_for_a_kernel() {
    let mut machine = Machine::of(Life::new(false, false, true));
    machine.call(1, Command::Reset);
    machine.finish(Ok(()));
    machine.call(2, Command::Stop);
    assert_eq!(machine.replies[&1], Verdict::Error(Refusal::Ended));
    machine.bring(3);
    assert_eq!(machine.state_of(3), None);
    machine.finish_all();
    assert!(machine.ended);
}

#[derive(Clone, Debug)]
enum Happening {
    Kernel,
    Call(Command),
    Finish,
    Refuse,
    Fail,
    Guest(u8),
    End(u8),
    Alone,
    Late,
    Again,
}

fn happening() -> impl Strategy<Value = Happening> {
    let nic = || "red".to_owned();
    let command = prop_oneof![
        Just(Command::Pause),
        Just(Command::Resume),
        Just(Command::Reset),
        Just(Command::Status),
        Just(Command::Stats),
        Just(Command::Registers),
        Just(Command::PowerButton),
        Just(detach("a")),
        Just(detach("b")),
        Just(Command::Attach {
            name: "a".to_owned(),
            options: Box::new(AnyOptions::Rng(RngOptions {})),
        }),
        Just(Command::Device {
            name: nic(),
            order: Value::Null
        }),
        any::<bool>().prop_map(|stop| Command::Snapshot { stop }),
        Just(Command::Dump),
        Just(Command::Reboot),
    ];
    prop_oneof![
        6 => command.prop_map(Happening::Call),
        5 => Just(Happening::Finish),
        1 => Just(Happening::Refuse),
        1 => Just(Happening::Fail),
        3 => (0_u8..11).prop_map(Happening::Guest),
        1 => (0_u8..4).prop_map(Happening::End),
        1 => Just(Happening::Late),
        1 => Just(Happening::Again),
        2 => Just(Happening::Kernel),
        1 => Just(Happening::Call(Command::Stop)),
        1 => prop::option::weighted(0.2, Just(())).prop_map(|alone| match alone {
            Some(()) => Happening::Alone,
            None => Happening::Finish,
        }),
    ]
}

proptest! {
    /// Every call is answered, once; the state that is told is that of the machine; there is one last event.
    #[test]
    fn no_call_is_lost_and_no_state_lies(
        paused: bool,
        exit_on_reboot: bool,
        boots_from_disk: bool,
        happenings in prop::collection::vec(happening(), 0..80),
    ) {
        let mut machine = Machine::of(Life::new(paused, exit_on_reboot, boots_from_disk));
        let mut calls = 0;
        for happening in happenings {
            if machine.ended {
                break;
            }
            match happening {
                Happening::Call(command) => {
                    calls += 1;
                    let asked = command == Command::Status;
                    machine.call(calls, command);
                    if asked && machine.job.is_none() && machine.life.wants_boot.is_none() {
                        let expected = match machine.running {
                            true => MachineState::Running,
                            false => MachineState::Paused,
                        };
                        prop_assert_eq!(machine.state_of(calls), Some(expected));
                    }
                }
                Happening::Kernel => {
                    calls += 1;
                    machine.bring(calls);
                }
                Happening::Finish => machine.finish(Ok(())),
                Happening::Refuse => machine.finish(Err(JobError::Refused(Refusal::Busy))),
                Happening::Fail => {
                    let causes = Vec::new();
                    machine.finish(Err(JobError::Fatal(Event::InternalError { causes })));
                }
                Happening::Guest(0) => machine.input(Input::GuestReset),
                Happening::Guest(1) => machine.input(Input::GuestPanicNotice),
                Happening::Guest(2) => machine.input(Input::ConsoleEscape),
                Happening::Guest(3) => machine.input(Input::GuestPowerOff),
                Happening::Guest(4) => machine.input(disk_error(true)),
                Happening::Guest(5..=7) => machine.eject(),
                Happening::Guest(9) => machine.input(Input::WatchdogExpired(WatchdogAction::Reset)),
                Happening::Guest(10) => machine.input(Input::WatchdogExpired(WatchdogAction::Shutdown)),
                Happening::End(0) => machine.input(Input::WatchdogExpired(WatchdogAction::Poweroff)),
                Happening::End(1) => machine.input(Input::GuestPanicked(Box::default())),
                Happening::End(2) => {
                    let number = machine.life.machine();
                    machine.input(Input::Failed { machine: number, causes: Vec::new() });
                }
                Happening::End(_) => machine.input(Input::Killed),
                Happening::Alone => {
                    // Nobody is left to tell, or to answer.
                    machine.input(Input::Alone);
                    prop_assert!(machine.ended);
                    return Ok(());
                }
                Happening::Late => machine.be_late(),
                Happening::Again => machine.try_again(),
                Happening::Guest(_) => {
                    let number = machine.life.machine();
                    machine.input(Input::GuestCrashed { machine: number, report: Box::default() });
                }
            }
            prop_assert!(machine.life.waiting.len() <= 2 * MAX_WAITING);
        }
        machine.finish_all();
        while !machine.expected.is_empty() || machine.life.wants_boot.is_some() {
            if machine.life.wants_boot.is_some() {
                calls += 1;
                machine.bring(calls);
                machine.finish_all();
            }
            machine.be_late();
            machine.finish_all();
        }
        prop_assert_eq!(machine.replies.len() as u64, calls);
        let is_last = |event: &&Event| matches!(
            event,
            Event::GuestShutdown
                | Event::GuestCrashed(_)
                | Event::Stopped
                | Event::InternalError { .. }
        ) || (exit_on_reboot && **event == Event::Reset);
        let last = machine.events.iter().filter(is_last).count();
        prop_assert_eq!(last, usize::from(machine.ended));
    }
}
