//! Whatever comes, in whatever order.

use std::collections::BTreeSet;

use proptest::prelude::*;
use vmm::control::{CrashReport, HostError, Refusal, Reply, Report};

use super::super::disks::tests::{new, open};
use super::*;

#[derive(Clone, Debug)]
enum Happening {
    Ask(Ask),
    Prepared,
    NotPrepared { is_final: bool },
    Notice(Event, MachineState),
    Answer { is_done: bool },
    NotSent,
    Stop,
    Delivered,
    DumpFile { is_there: bool },
    Image { is_there: bool },
    Pass(u64),
    Gone,
}

/// A Sync whose VMI has these disks beside those of the start.
fn with_disks(names: &[&str]) -> Ask {
    let mut wanted = wanted("Running");
    wanted.disks = names.iter().map(|name| new(name)).collect();
    Ask::Sync(Box::new(wanted))
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        2 => Just(with_disks(&["a"])),
        2 => Just(with_disks(&["a", "b"])),
        4 => Just(Ask::Sync(Box::new(wanted("Scheduled")))),
        2 => Just(Ask::Pause),
        2 => Just(Ask::Unpause),
        1 => Just(Ask::Reset),
        1 => Just(Ask::SoftReboot),
        1 => Just(Ask::Shutdown),
        1 => Just(Ask::Kill),
        1 => Just(Ask::Delete),
        1 => Just(Ask::Dump("/dumps/a".into())),
        1 => Just(Ask::Dump("/dumps/b".into())),
        1 => Just(Ask::Domain),
        2 => Just(Ask::Stats),
        1 => Just(Ask::ProbesArePaused),
    ]
}

fn happening() -> impl Strategy<Value = Happening> {
    use MachineState::*;
    let disk_error = HostError {
        device: "root".to_owned(),
        operation: "write".to_owned(),
        message: "no space".to_owned(),
        offset: 0,
        errno: 28,
        untold: 0,
        stops: true,
    };
    prop_oneof![
        8 => ask().prop_map(Happening::Ask),
        4 => Just(Happening::Prepared),
        1 => any::<bool>().prop_map(|is_final| Happening::NotPrepared { is_final }),
        4 => Just(Happening::Notice(Event::Running, Running)),
        2 => Just(Happening::Notice(Event::Paused, Paused)),
        1 => Just(Happening::Notice(Event::Reset, Running)),
        1 => Just(Happening::Notice(Event::HostError(disk_error), Running)),
        1 => Just(Happening::Notice(Event::GuestShutdown, ShuttingDown)),
        1 => Just(Happening::Notice(Event::GuestCrashed(CrashReport::default()), ShuttingDown)),
        6 => any::<bool>().prop_map(|is_done| Happening::Answer { is_done }),
        1 => Just(Happening::NotSent),
        1 => Just(Happening::Stop),
        1 => Just(Happening::Delivered),
        2 => any::<bool>().prop_map(|is_there| Happening::DumpFile { is_there }),
        3 => any::<bool>().prop_map(|is_there| Happening::Image { is_there }),
        1 => prop_oneof![Just(1), Just(20), Just(250)].prop_map(Happening::Pass),
        1 => Just(Happening::Gone),
    ]
}

/// A pod and those whom it asks.
struct Others {
    rig: Rig,
    asked: Vec<u64>,
    /// Machines that were made, or not.
    made: usize,
    /// Images that were opened, or not.
    opened: usize,
    /// Calls that the vm process has answered.
    answered: BTreeSet<u64>,
    gone: bool,
}

impl Others {
    /// The oldest call that the vm process has to answer.
    fn call(&self) -> Option<u64> {
        let mut sent = self.rig.effects.iter().filter_map(|effect| match effect {
            Effect::Vm(LifeEffect::Send(call, _)) => Some(call.id),
            _ => None,
        });
        sent.find(|id| !self.gone && !self.answered.contains(id))
    }

    fn answer(&mut self, verdict: Verdict) {
        if let Some(id) = self.call() {
            self.answered.insert(id);
            let reply = Report::Reply(Reply { id, verdict });
            self.rig.input(Input::Vm(LifeInput::Report(reply)));
        }
    }

    fn prepare(&mut self, result: Result<Prepared, Failure>) {
        if orders(&self.rig) > self.made {
            self.made += 1;
            self.rig.input(Input::Prepared(result));
        }
    }

    /// Names of the disks whose images nobody has opened yet.
    fn to_open(&self) -> Vec<String> {
        let orders = self.rig.effects.iter().filter_map(|effect| match effect {
            Effect::OpenImage(name, _) => Some(name.clone()),
            _ => None,
        });
        orders.skip(self.opened).collect()
    }

    fn open(&mut self, is_there: bool) {
        let Some(name) = self.to_open().into_iter().next() else {
            return;
        };
        self.opened += 1;
        match is_there {
            true => open(&mut self.rig, &name),
            false => {
                let why = Err("not there".to_owned());
                self.rig.input(Input::Image(name, why));
            }
        }
    }

    fn take(&mut self, happening: Happening) {
        match happening {
            Happening::Ask(ask) => {
                let token = self.rig.ask(ask);
                self.asked.push(token);
            }
            Happening::Prepared => self.prepare(Ok(Prepared::default())),
            Happening::NotPrepared { is_final } => {
                let text = "no disk".to_owned();
                self.prepare(Err(Failure { text, is_final }));
            }
            Happening::Notice(event, state) if self.made > 0 && !self.gone => {
                self.rig.notice(event, state);
            }
            Happening::Notice(..) => {}
            Happening::Answer { is_done: true } => {
                self.answer(Verdict::Result(MachineState::Running.into()));
            }
            Happening::Answer { is_done: false } => self.answer(Verdict::Error(Refusal::Busy)),
            Happening::NotSent => {
                if let Some(id) = self.call() {
                    self.answered.insert(id);
                    let refusal = Refusal::Busy;
                    self.rig
                        .input(Input::Vm(LifeInput::NotSent { id, refusal }));
                }
            }
            Happening::Stop => self.rig.input(Input::Stop("SIGTERM".to_owned())),
            Happening::Delivered => self.rig.input(Input::Delivered),
            Happening::DumpFile { is_there } => {
                let file = std::io::pipe().map(|(end, _)| end.into());
                let file = file.map_err(|error| error.to_string());
                let none = || Err("no room".to_owned());
                let file = if is_there { file } else { none() };
                self.rig.input(Input::DumpFile(file));
            }
            Happening::Image { is_there } => self.open(is_there),
            Happening::Pass(seconds) => self.rig.pass(Duration::from_secs(seconds)),
            Happening::Gone => self.go(),
        }
    }

    fn go(&mut self) {
        if !std::mem::replace(&mut self.gone, true) {
            self.rig.gone(Death::Killed(9));
        }
    }

    fn is_over(&self) -> bool {
        !self.rig.exits().is_empty()
    }
}

proptest! {
    /// Nobody is answered twice, and all are once the machine has ended; the domain is told in order; there is always a
    /// way to the end.
    #[test]
    fn nobody_is_forgotten_and_every_pod_ends(
        happenings in prop::collection::vec(happening(), 0..60),
    ) {
        let mut others = Others {
            rig: Rig::new(),
            asked: Vec::new(),
            made: 0,
            opened: 0,
            answered: BTreeSet::new(),
            gone: false,
        };
        for happening in happenings {
            if others.is_over() {
                break;
            }
            others.take(happening);
            let to_open = others.to_open();
            let names: BTreeSet<_> = to_open.iter().collect();
            prop_assert_eq!(names.len(), to_open.len(), "once each");
        }
        if !others.is_over() {
            others.go();
        }
        for _ in 0..3 {
            if !others.is_over() {
                others.rig.pass(Duration::from_secs(250));
            }
        }
        prop_assert!(others.is_over());
        let has_ended = matches!(others.rig.pod.phase, Phase::Leaving { .. });
        for token in &others.asked {
            if has_ended || others.rig.is_answered(*token) {
                // Once, which the rig looks at.
                let _ = others.rig.answer(*token);
            }
        }
        let told = others.rig.effects.iter().filter_map(|effect| match effect {
            Effect::Publish { kind, is_last, .. } => Some((*kind, *is_last)),
            _ => None,
        });
        let told: Vec<_> = told.collect();
        for (index, (kind, is_last)) in told.iter().enumerate() {
            prop_assert_eq!(*kind == "ADDED", index == 0, "{:?}", told);
            prop_assert_eq!(*is_last, has_ended && index + 1 == told.len(), "{:?}", told);
        }
    }
}
