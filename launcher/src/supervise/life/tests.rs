use proptest::prelude::*;
use vmm::control::CrashReport;

use super::*;

/// How some process ended.
fn ended() -> Death {
    Death::Exited(0)
}

struct Run {
    life: Life,
    now: Instant,
    sent: Vec<Call>,
    replies: Vec<(u64, Reply)>,
    kills: usize,
}

const GRACE: Duration = Duration::from_secs(30);

impl Run {
    fn new() -> Self {
        Self {
            life: Life::new(GRACE, false),
            now: Instant::now(),
            sent: Vec::new(),
            replies: Vec::new(),
            kills: 0,
        }
    }

    fn running() -> Self {
        let mut run = Self::new();
        run.event(Event::Running, MachineState::Running);
        run
    }

    fn input(&mut self, input: Input) {
        let (life, effects) = std::mem::take(&mut self.life).step(self.now, input);
        self.life = life;
        for effect in effects {
            match effect {
                Effect::Send(call, _) => self.sent.push(call),
                Effect::Reply { client, reply } => self.replies.push((client, reply)),
                Effect::Kill => self.kills += 1,
                _ => {}
            }
        }
    }

    fn event(&mut self, event: Event, state: MachineState) {
        self.input(Input::Report(event.with(state)));
    }

    fn call(&mut self, client: u64, id: u64, command: Command) {
        self.input(Input::Call(ClientCall {
            asker: Asker { client, id },
            command,
            open: None,
            descriptors: Vec::new(),
        }));
    }

    /// Waits for the deadline.
    fn wait(&mut self) -> bool {
        let Some(deadline) = self.life.deadline() else {
            return false;
        };
        self.now = deadline;
        self.input(Input::Tick);
        true
    }

    fn commands(&self) -> Vec<&Command> {
        self.sent.iter().map(|call| &call.command).collect()
    }
}

#[test]
fn a_signal_presses_then_stops_then_kills() {
    let mut run = Run::running();
    run.input(Input::Signal("SIGTERM"));
    assert_eq!(run.commands(), [&Command::Resume, &Command::PowerButton]);
    assert_eq!(run.life.deadline(), Some(run.now + PRESS_AGAIN));
    run.wait();
    assert_eq!(run.commands()[2..], [&Command::PowerButton]);
    let start = run.now;
    while run.commands().last() == Some(&&Command::PowerButton) {
        assert!(run.now <= start + GRACE, "not for ever");
        run.wait();
    }
    assert_eq!(run.commands().last(), Some(&&Command::Stop));
    assert_eq!(run.kills, 0);
    run.wait();
    assert_eq!(run.kills, 1);
    run.input(Input::Closed);
    run.input(Input::Reaped(ended()));
    assert!(run.life.is_over());
    assert!(matches!(run.life.outcome().0, Outcome::Stopped));
}

/// There is no guest whose grace would be waited for.
#[test]
fn a_signal_before_there_is_a_guest_ends_the_run() {
    let mut run = Run::new();
    run.input(Input::Signal("SIGTERM"));
    assert_eq!((run.kills, run.commands().len()), (1, 0));
    run.input(Input::Closed);
    run.input(Input::Reaped(ended()));
    assert!(matches!(run.life.outcome().0, Outcome::Stopped));
}

#[test]
fn how_a_run_ended_is_decided_when_it_ended() {
    let mut run = Run::running();
    run.event(Event::GuestShutdown, MachineState::ShuttingDown);
    run.input(Input::Signal("SIGTERM"));
    assert_eq!(run.kills, 1, "who waits no longer need not");
    run.input(Input::Closed);
    run.input(Input::Reaped(ended()));
    assert!(matches!(run.life.outcome().0, Outcome::PoweredOff));
}

/// The vm process alone cannot have a machine taken for saved, whose network is left as it is.
#[test]
fn a_run_ends_by_a_snapshot_only_if_one_was_asked_for_and_made() {
    let saved = Verdict::Result(MachineState::Paused.into());
    let failed = Verdict::Error(Refusal::Failed { causes: Vec::new() });
    for (stop, verdict, is_saved) in [
        (true, saved.clone(), true),
        (true, failed, false),
        (false, saved, false),
    ] {
        let mut run = Run::running();
        run.call(1, 1, Command::Snapshot { stop });
        let id = run.sent[0].id;
        run.input(Input::Report(Report::Reply(Reply { id, verdict })));
        run.event(Event::Stopped, MachineState::ShuttingDown);
        run.input(Input::Closed);
        run.input(Input::Reaped(ended()));
        let outcome = run.life.outcome().0;
        assert_eq!(matches!(outcome, Outcome::Saved), is_saved, "{outcome}");
        assert_eq!(matches!(outcome, Outcome::Stopped), !is_saved, "{outcome}");
    }
}

#[test]
fn a_vm_process_that_does_not_end_is_killed() {
    let mut run = Run::running();
    let last = Event::GuestCrashed(CrashReport::default());
    run.event(last, MachineState::ShuttingDown);
    assert_eq!(run.life.deadline(), Some(run.now + END_TIMEOUT));
    run.wait();
    assert_eq!(run.kills, 1);
}

#[test]
fn replies_go_to_who_asked_under_the_number_they_gave() {
    let mut run = Run::running();
    run.call(7, 1, Command::Status);
    run.call(8, 1, Command::Pause);
    let sent: Vec<_> = run.sent.iter().map(|call| call.id).collect();
    let [first, second] = sent[..] else {
        panic!("{:?}", run.sent)
    };
    let paused = Verdict::Result(MachineState::Paused.into());
    for id in [second, first] {
        run.input(Input::Report(Report::Reply(Reply {
            id,
            verdict: paused.clone(),
        })));
    }
    let clients: Vec<_> = (run.replies.iter())
        .map(|(client, reply)| (*client, reply.id))
        .collect();
    assert_eq!(clients, [(8, 1), (7, 1)]);
}

#[test]
fn a_vm_process_that_does_not_answer_is_not_asked_without_end() {
    let mut run = Run::running();
    for id in 0..1000 {
        run.call(1, id, Command::Stats);
    }
    assert_eq!(run.sent.len(), MAX_CALLS);
    run.call(2, 1, Command::Stats);
    assert_eq!(run.sent.len(), MAX_CALLS + 1, "others are served");
    assert!(matches!(
        run.replies.last(),
        Some((
            1,
            Reply {
                verdict: Verdict::Error(Refusal::Busy),
                ..
            }
        ))
    ));
}

/// Many ask a pod at once, and what the pod asks is for all of them.
#[test]
fn the_launcher_itself_is_no_client() {
    let mut run = Run::running();
    for id in 0..2 * MAX_CALLS as u64 {
        run.call(LAUNCHER, id, Command::Pause);
    }
    assert_eq!((run.sent.len(), run.replies.len()), (2 * MAX_CALLS, 0));
}

#[derive(Clone, Debug)]
enum Happening {
    Signal,
    Call(Command),
    Answer,
    Refuse,
    NotSent,
    Event(Event, MachineState),
    Kernel,
    NoKernel,
    Wait,
    Broken,
    Closed,
    Reaped,
}

fn happening() -> impl Strategy<Value = Happening> {
    use MachineState::*;
    prop_oneof![
        2 => Just(Happening::Signal),
        2 => Just(Happening::Wait),
        4 => Just(Happening::Answer),
        1 => Just(Happening::Refuse),
        2 => Just(Happening::NotSent),
        1 => Just(Happening::Broken),
        1 => Just(Happening::Closed),
        1 => Just(Happening::Reaped),
        2 => Just(Happening::Kernel),
        1 => Just(Happening::NoKernel),
        2 => Just(Happening::Call(Command::Status)),
        2 => Just(Happening::Call(Command::Pause)),
        1 => Just(Happening::Call(Command::Stop)),
        3 => any::<bool>().prop_map(|stop| Happening::Call(Command::Snapshot { stop })),
        2 => Just(Happening::Event(Event::Running, Running)),
        2 => Just(Happening::Event(Event::Paused, Paused)),
        2 => Just(Happening::Event(Event::BootWanted, Resetting)),
        1 => Just(Happening::Event(Event::GuestShutdown, ShuttingDown)),
        1 => Just(Happening::Event(Event::GuestCrashed(CrashReport::default()), ShuttingDown)),
        1 => Just(Happening::Event(Event::Stopped, ShuttingDown)),
        1 => Just(Happening::Event(Event::Reset, Running)),
    ]
}

/// What a run ends as, and what happened to it that this follows from.
#[derive(Default)]
struct Expected {
    /// By the first that says how it ended.
    outcome: Option<&'static str>,
    /// A snapshot that is to be the end was made.
    saved: bool,
    exit_on_reboot: bool,
    /// Kernels that were asked for and did not come yet.
    kernels: usize,
}

impl Expected {
    fn event(&mut self, event: &Event) {
        let outcome = match event {
            Event::GuestShutdown => "powered off",
            Event::GuestCrashed(_) => "crashed",
            Event::Stopped if self.saved => "saved",
            Event::Stopped => "stopped",
            Event::Reset if self.exit_on_reboot => "rebooted",
            Event::BootWanted => {
                self.kernels += 1;
                return;
            }
            _ => return,
        };
        self.outcome.get_or_insert(outcome);
    }
}

fn name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::PoweredOff => "powered off",
        Outcome::Crashed(_) => "crashed",
        Outcome::Saved => "saved",
        Outcome::Stopped => "stopped",
        Outcome::Rebooted => "rebooted",
        Outcome::Refused { .. } => "refused",
        _ => "another",
    }
}

impl Run {
    /// The oldest call of a client that is not answered, if the vm process can say something.
    fn oldest(&self) -> Option<(u64, Command)> {
        let id = *self
            .life
            .asked
            .keys()
            .next()
            .filter(|_| self.life.listens())?;
        let call = self.sent.iter().find(|call| call.id == id)?;
        Some((id, call.command.clone()))
    }

    fn answer(&mut self, id: u64, verdict: Verdict) {
        self.input(Input::Report(Report::Reply(Reply { id, verdict })));
    }
}

proptest! {
    /// Every call is answered once; the first last event decides; there is always a way to the end.
    #[test]
    fn no_call_is_lost_and_every_run_ends(
        exit_on_reboot: bool,
        crash_dump: bool,
        happenings in prop::collection::vec(happening(), 0..60),
    ) {
        let mut run = Run::new();
        run.life = Life::new(GRACE, exit_on_reboot).dumping(crash_dump);
        let mut expected = Expected { exit_on_reboot, ..Expected::default() };
        let mut calls = 0;
        for happening in happenings {
            match happening {
                Happening::Signal => run.input(Input::Signal("SIGTERM")),
                Happening::Call(command) => {
                    calls += 1;
                    run.call(1, calls, command);
                }
                Happening::Answer => {
                    if let Some((id, command)) = run.oldest() {
                        expected.saved |= command == Command::Snapshot { stop: true };
                        run.answer(id, Verdict::Result(MachineState::Running.into()));
                    }
                }
                Happening::Refuse => {
                    if let Some((id, _)) = run.oldest() {
                        run.answer(id, Verdict::Error(Refusal::Busy));
                    }
                }
                // It may be the launcher's own.
                Happening::NotSent => {
                    if let Some(id) = run.sent.last().map(|call| call.id) {
                        run.input(Input::NotSent { id, refusal: Refusal::Busy });
                    }
                }
                Happening::Event(event, state) => {
                    if run.life.listens() {
                        expected.event(&event);
                        run.event(event, state);
                    }
                }
                Happening::Kernel if expected.kernels > 0 => {
                    expected.kernels -= 1;
                    run.input(Input::Kernel(Ok(DiskKernel::for_test())));
                    let is_boot = |call: &Call| matches!(call.command, Command::Boot { .. });
                    prop_assert!(run.sent.last().is_some_and(is_boot));
                }
                Happening::NoKernel if expected.kernels > 0 => {
                    expected.kernels -= 1;
                    expected.outcome.get_or_insert("refused");
                    run.input(Input::Kernel(Err("no boot entry".to_owned())));
                }
                Happening::Kernel | Happening::NoKernel => {}
                Happening::Wait => {
                    run.wait();
                }
                Happening::Broken => run.input(Input::Broken("nonsense".to_owned())),
                Happening::Closed => run.input(Input::Closed),
                Happening::Reaped => run.input(Input::Reaped(ended())),
            }
        }
        run.input(Input::Signal("SIGTERM"));
        while run.wait() {}
        prop_assert!(run.kills == 1 || run.life.status.is_some());
        run.input(Input::Closed);
        run.input(Input::Reaped(ended()));
        prop_assert!(run.life.is_over());
        prop_assert_eq!(run.replies.len() as u64, calls);
        let found = run.life.outcome().0;
        prop_assert_eq!(name(&found), expected.outcome.unwrap_or("stopped"));
    }
}
