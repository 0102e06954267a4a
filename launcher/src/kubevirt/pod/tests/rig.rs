//! A pod whose inputs are a test's, and what came of them.

use serde_json::Value;
use vmm::control::{Command, Refusal, Reply, Report};

use super::super::*;
use crate::supervise::Death;

/// A pod and what it did.
pub(in super::super) struct Rig {
    pub(in super::super) pod: Pod,
    pub(super) now: Instant,
    pub(in super::super) effects: Vec<Effect>,
    tokens: u64,
}

impl Rig {
    pub(in super::super) fn new() -> Self {
        let now = Instant::now();
        let limits = Limits {
            grace: Duration::from_secs(45),
            start_by: now + Duration::from_secs(240),
        };
        Self {
            pod: Pod::new(identity(), limits),
            now,
            effects: Vec::new(),
            tokens: 0,
        }
    }

    /// A machine that runs, with its effects forgotten.
    pub(in super::super) fn up() -> Self {
        let mut rig = Self::new();
        rig.sync("Scheduled");
        rig.prepared();
        rig.notice(Event::Running, MachineState::Running);
        rig.effects.clear();
        rig
    }

    pub(in super::super) fn input(&mut self, input: Input) {
        let more = self.pod.step(self.now, SystemTime::UNIX_EPOCH, input);
        self.effects.extend(more);
    }

    pub(in super::super) fn ask(&mut self, ask: Ask) -> u64 {
        self.tokens += 1;
        let token = self.tokens;
        self.input(Input::Ask { token, ask });
        token
    }

    pub(in super::super) fn sync(&mut self, phase: &str) -> u64 {
        self.ask(Ask::Sync(Box::new(wanted(phase))))
    }

    pub(in super::super) fn prepared(&mut self) {
        self.input(Input::Prepared(Ok(Prepared::default())));
    }

    pub(in super::super) fn notice(&mut self, event: Event, state: MachineState) {
        self.input(Input::Vm(LifeInput::Report(event.with(state))));
    }

    /// The vm process obeys the last command.
    pub(in super::super) fn reply(&mut self, state: MachineState) {
        self.answered(state.into());
    }

    /// And says more.
    pub(in super::super) fn answered(&mut self, answer: vmm::control::Answer) {
        self.answer_last(Verdict::Result(answer));
    }

    /// It does not.
    pub(in super::super) fn refuse(&mut self, refusal: Refusal) {
        self.answer_last(Verdict::Error(refusal));
    }

    fn answer_last(&mut self, verdict: Verdict) {
        let sent = self.effects.iter().rev().find_map(|effect| match effect {
            Effect::Vm(LifeEffect::Send(call, _)) => Some(call.id),
            _ => None,
        });
        let reply = Reply {
            id: sent.expect("a command"),
            verdict,
        };
        self.input(Input::Vm(LifeInput::Report(Report::Reply(reply))));
    }

    /// The vm process goes after its last event.
    pub(in super::super) fn end(&mut self, event: Event) {
        self.notice(event, MachineState::ShuttingDown);
        self.gone(Death::Exited(0));
    }

    pub(in super::super) fn gone(&mut self, death: Death) {
        self.input(Input::Vm(LifeInput::Reaped(death)));
        self.input(Input::Vm(LifeInput::Closed));
    }

    pub(in super::super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.input(Input::Tick);
    }

    pub(in super::super) fn commands(&self) -> Vec<&Command> {
        let commands = self.effects.iter().filter_map(|effect| match effect {
            Effect::Vm(LifeEffect::Send(call, _)) => Some(&call.command),
            _ => None,
        });
        commands.collect()
    }

    #[track_caller]
    pub(in super::super) fn answer(&self, token: u64) -> &Answer {
        let mut answers = self.effects.iter().filter_map(|effect| match effect {
            Effect::Answer { token: to, answer } if *to == token => Some(answer),
            _ => None,
        });
        let answer = answers.next().expect("an answer");
        assert!(answers.next().is_none(), "one answer for each call");
        answer
    }

    pub(in super::super) fn is_answered(&self, token: u64) -> bool {
        let to =
            |effect: &Effect| matches!(effect, Effect::Answer { token: to, .. } if *to == token);
        self.effects.iter().any(to)
    }

    /// Kind, status and reason of what virt-handler was told.
    pub(in super::super) fn told(&self) -> Vec<String> {
        let told = self.effects.iter().filter_map(|effect| match effect {
            Effect::Publish { kind, domain, .. } => {
                let domain: Value = serde_json::from_str(domain).expect("JSON");
                let status = |name: &str| domain["Status"][name].as_str().unwrap_or("").to_owned();
                let gone = match domain["ObjectMeta"]["deletionTimestamp"].is_string() {
                    true => " gone",
                    false => "",
                };
                Some(format!(
                    "{kind} {}/{}{gone}",
                    status("Status"),
                    status("Reason")
                ))
            }
            _ => None,
        });
        told.collect()
    }

    /// What clients of the control socket were answered.
    pub(super) fn replies(&self) -> Vec<(u64, &Reply)> {
        let replies = self.effects.iter().filter_map(|effect| match effect {
            Effect::Reply { client, reply } => Some((*client, reply)),
            _ => None,
        });
        replies.collect()
    }

    pub(in super::super) fn exits(&self) -> Vec<Exit> {
        let exits = self.effects.iter().filter_map(|effect| match effect {
            Effect::Exit(exit) => Some(*exit),
            _ => None,
        });
        exits.collect()
    }

    pub(in super::super) fn warnings(&self) -> Vec<&str> {
        let warnings = self.effects.iter().filter_map(|effect| match effect {
            Effect::Warn { reason, .. } => Some(*reason),
            _ => None,
        });
        warnings.collect()
    }
}

pub(super) fn identity() -> Identity {
    Identity {
        name: "vm".to_owned(),
        namespace: "ns".to_owned(),
        uid: "u-1".to_owned(),
        firmware_uuid: String::new(),
    }
}

pub(in super::super) fn wanted(phase: &str) -> Wanted {
    Wanted {
        identity: identity(),
        grace_seconds: 30,
        phase: phase.to_owned(),
        ..Wanted::default()
    }
}
