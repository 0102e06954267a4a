//! The life of a pod with one machine as virt-handler sees it, without sockets and clocks.
//!
//! ```text
//!          Sync               ready            runs                  has ended            Delete
//!   Idle ───────▶ Preparing ─────────▶ Starting ─────▶ Up ───────────────────────▶ Over ─────────▶ Leaving
//!    ▲               │  │                  │           Shutdown, Kill, SIGTERM      ▲   15 s        │ told, or
//!    └───────────────┘  └──────────────────┴───────────────────────────────────────┘               ▼ given up
//!      cannot now             can never                                                            exit
//! ```
//!
//! The machine itself is a [`Life`], as without KubeVirt: calls go to it, and its events come from it. What
//! differs is who wants the end (virt-handler, which is told of the pod's SIGTERM, not the guest), and that the
//! domain outlives the machine until virt-handler deletes it.

mod asks;
mod counters;
mod disks;
mod dump;
mod growth;
mod later;
mod nics;
mod told;
mod words;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use vmm::control::{Event, MachineState, Refusal, Verdict};

use self::counters::Counters;
use self::dump::Dump;
use self::growth::Growth;
use self::later::Later;
pub(super) use self::words::{Answer, Ask, Effect, Failure, Input, Prepared, Wanted};
use super::agent::AgentView;
use super::clock::rfc3339;
use super::domain::{Condition, DiskFacts, Facts, GracePeriod, Identity, InterfaceFacts};
use super::hotplug::{NewDisk, NewNic};
use crate::exit::Exit;
use crate::supervise::{LAUNCHER, LauncherEvent, Life, LifeEffect, LifeInput, Outcome};

/// How long virt-handler may take to delete a domain that has ended.
const DELETE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the last event may take; after Delete virt-handler need not listen any more.
const LAST_EVENT_TIMEOUT: Duration = Duration::from_secs(3);

/// The same without Delete.
const UNDELETED_TIMEOUT: Duration = Duration::from_secs(30);

/// Time between two attempts to end a machine whose grace is over.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// What a reply of the vm process is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pending {
    Answer(u64),
    Pause(u64),
    Unpause(u64),
    /// The link of the NIC of this number.
    Link {
        nic: usize,
        up: bool,
    },
    Dump,
    /// A disk that comes, as it will be.
    Attach(DiskFacts),
    /// The disk of this name.
    Detach(String),
    /// The size of the disk of this name.
    Grow(String),
    /// A NIC that comes.
    AttachNic(InterfaceFacts),
    /// The NIC of this name.
    DetachNic(String),
    Stats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Preparing,
    Starting,
    Up,
    Over {
        condition: Condition,
        until: Instant,
    },
    Leaving {
        until: Instant,
    },
}

/// What does not change.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Between SIGTERM and the forced end of the machine.
    pub(super) grace: Duration,
    /// When there has to be a machine.
    pub(super) start_by: Instant,
}

/// The pod.
#[derive(Debug)]
pub(super) struct Pod {
    limits: Limits,
    /// Of the command line, until a VMI says more.
    identity: Identity,
    phase: Phase,
    life: Life,
    /// The vm process is gone, and `life` stands for nothing.
    alone: bool,
    facts: Facts,
    agent: AgentView,
    credentials: Option<Result<(), String>>,
    dump: Dump,
    disks: Later<NewDisk>,
    nics: Later<NewNic>,
    growth: Growth,
    pause_probes: bool,
    grace: GracePeriod,
    /// Virt-handler paused the machine, or wanted it so from the start.
    paused_by_user: bool,
    /// A disk failed, and the machine stands still for it.
    failing_disk: bool,
    /// The domain goes with its machine.
    deleted: bool,
    /// Why there is no machine and never will be.
    failure: Option<String>,
    /// When the machine is ended by force.
    kill_at: Option<Instant>,
    /// Who waits for the machine's start, its end.
    syncs: Vec<u64>,
    kills: Vec<u64>,
    counters: Counters,
    pending: BTreeMap<u64, Pending>,
    last_call: u64,
    /// What virt-handler was told last.
    published: Option<String>,
    gone_since: Option<String>,
}

impl Pod {
    pub(super) fn new(identity: Identity, limits: Limits) -> Self {
        Self {
            limits,
            identity,
            phase: Phase::Idle,
            life: Life::default(),
            alone: false,
            facts: Facts::default(),
            agent: AgentView::default(),
            credentials: None,
            dump: Dump::default(),
            disks: Later::default(),
            nics: Later::default(),
            growth: Growth::default(),
            pause_probes: false,
            grace: GracePeriod::default(),
            paused_by_user: false,
            failing_disk: false,
            deleted: false,
            failure: None,
            kill_at: None,
            syncs: Vec::new(),
            kills: Vec::new(),
            counters: Counters::default(),
            pending: BTreeMap::new(),
            last_call: 0,
            published: None,
            gone_since: None,
        }
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The machine runs, or did: what only the start needed can go.
    pub(super) fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// Its guest runs, as far as is known. Its vCPUs stand still while its memory is written.
    pub(super) fn guest_runs(&self) -> bool {
        let runs = self.is_up() && self.life.machine() == MachineState::Running;
        runs && !self.dump.is_under_way()
    }

    /// What it does, as clients of the control socket are told.
    pub(super) fn machine(&self) -> MachineState {
        match self.alone {
            true => MachineState::Ended,
            false => self.life.machine(),
        }
    }

    /// When [`Input::Tick`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let of_phase = match self.phase {
            Phase::Idle | Phase::Preparing | Phase::Starting => Some(self.limits.start_by),
            Phase::Up => self.kill_at,
            Phase::Over { until, .. } | Phase::Leaving { until } => Some(until),
        };
        let of_life = self.life.deadline().filter(|_| !self.alone);
        of_phase.into_iter().chain(of_life).min()
    }

    /// What follows on an input.
    pub(super) fn step(&mut self, now: Instant, time: SystemTime, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        let then = &mut effects;
        match input {
            Input::Ask { token, ask } => self.ask(now, time, token, ask, then),
            Input::Prepared(Ok(prepared)) => self.prepared(prepared),
            Input::Prepared(Err(failure)) => self.not_prepared(now, failure, then),
            Input::Vm(input) => self.live(now, input, then),
            Input::Call(call) => self.obey(now, call, then),
            Input::Agent(view) => {
                // One that ends with its machine was there: virt-handler may still ask for what it said.
                let ends = self.condition() == Some(Condition::ShuttingDown);
                if self.phase == Phase::Up && !ends {
                    self.agent = *view;
                }
            }
            Input::CredentialsSet(result) => {
                if let Err(reason) = &result {
                    let what = "keys and passwords of accessCredentials are not set";
                    then.push(Effect::warn(format!("{what}: {reason}")));
                }
                self.credentials = Some(result);
            }
            Input::DumpFile(file) => self.dump_into(now, file, then),
            Input::Grown(name, grown) => self.grown(now, name, grown, then),
            Input::Nic(name, nic) => self.add_nic(now, &name, nic, then),
            Input::Image(name, image) => self.add_disk(now, name, image, then),
            Input::Stop(signal) => self.stop(now, &signal, then),
            Input::Delivered => {
                if matches!(self.phase, Phase::Leaving { .. }) {
                    then.push(Effect::Exit(Exit::Success));
                }
            }
            Input::Tick => self.tick(now, time, then),
        }
        self.look(now, time, then);
        effects
    }

    fn prepared(&mut self, prepared: Prepared) {
        if self.phase == Phase::Preparing {
            self.phase = Phase::Starting;
            self.facts = prepared.facts;
            self.life.end_at_reset(prepared.exit_on_reboot);
        }
    }

    fn not_prepared(&mut self, now: Instant, failure: Failure, then: &mut Vec<Effect>) {
        if self.phase != Phase::Preparing {
            return;
        }
        if failure.is_final {
            return self.fail(now, failure.text, then);
        }
        self.phase = Phase::Idle;
        answer_all(&mut self.syncs, &Err(failure.text), then);
    }

    /// There will be no machine, and virt-handler is to know it as failed at once.
    fn fail(&mut self, now: Instant, text: String, then: &mut Vec<Effect>) {
        answer_all(&mut self.syncs, &Err(text.clone()), then);
        answer_all(&mut self.kills, &Ok(String::new()), then);
        then.push(Effect::Warn {
            reason: "StartFailed",
            message: text.clone(),
        });
        self.failure = Some(text);
        self.phase = Phase::Over {
            condition: Condition::Crashed,
            until: now + DELETE_TIMEOUT,
        };
    }

    /// Steps the machine's life.
    fn live(&mut self, now: Instant, input: LifeInput, then: &mut Vec<Effect>) {
        if self.alone {
            return;
        }
        let (life, effects) = std::mem::take(&mut self.life).step(now, input);
        self.life = life;
        for effect in effects {
            match effect {
                LifeEffect::Reply {
                    client: LAUNCHER,
                    reply,
                } => {
                    self.replied(reply.id, reply.verdict, then);
                }
                LifeEffect::Reply { client, reply } => then.push(Effect::Reply { client, reply }),
                LifeEffect::Broadcast(notice) => {
                    then.push(Effect::Broadcast(notice.clone()));
                    self.note(notice.event, then);
                }
                effect => then.push(Effect::Vm(effect)),
            }
        }
    }

    /// A disk that stops the machine is told of; virt-handler's next Sync is the next attempt.
    fn note(&mut self, event: Event, then: &mut Vec<Effect>) {
        match event {
            Event::HostError(error) if error.stops => {
                self.failing_disk = true;
                then.push(Effect::Warn {
                    reason: "IOerror",
                    message: format!(
                        "disk {}: {} failed on the host: {}",
                        error.device, error.operation, error.message
                    ),
                });
            }
            Event::Running => self.failing_disk = false,
            _ => {}
        }
    }

    /// What the vm process answered.
    fn replied(&mut self, call: u64, verdict: Verdict, then: &mut Vec<Effect>) {
        let Some(pending) = self.pending.remove(&call) else {
            return;
        };
        let (result, stats) = match verdict {
            // The guest gave it back when that was not waited for any more.
            Verdict::Error(Refusal::UnknownDevice { .. })
                if matches!(pending, Pending::Detach(_) | Pending::DetachNic(_)) =>
            {
                (Ok(String::new()), None)
            }
            Verdict::Result(answer) => (Ok(String::new()), answer.stats),
            Verdict::Error(refusal) => (Err(refusal.to_string()), None),
        };
        let token = match pending {
            Pending::Answer(token) => token,
            Pending::Pause(token) => {
                self.paused_by_user &= result.is_ok();
                token
            }
            Pending::Unpause(token) => {
                self.paused_by_user &= result.is_err();
                token
            }
            Pending::Link { nic, up } => return self.link_was_set(nic, up, result.err(), then),
            Pending::Dump => return self.dump.end(result.map(drop)),
            Pending::Attach(disk) => return self.disk_has_come(disk, result.err(), then),
            Pending::Detach(name) => return self.disk_has_gone(&name, result.err(), then),
            Pending::Grow(name) => return self.size_was_told(&name, result.err(), then),
            Pending::AttachNic(nic) => return self.nic_has_come(nic, result.err(), then),
            Pending::DetachNic(name) => return self.nic_has_gone(&name, result.err(), then),
            Pending::Stats => {
                let stats = result.map(|_| stats.map(|stats| *stats).unwrap_or_default());
                return self.counted(stats, then);
            }
        };
        then.push(Effect::Answer {
            token,
            answer: result,
        });
    }

    /// Virt-handler sees it in the domain; what failed is tried again by its next Sync.
    fn link_was_set(
        &mut self,
        nic: usize,
        up: bool,
        failure: Option<String>,
        then: &mut Vec<Effect>,
    ) {
        match (failure, self.facts.interfaces.get_mut(nic)) {
            (None, Some(nic)) => nic.link_up = up,
            (Some(reason), Some(nic)) => {
                let name = &nic.name;
                let text = format!("the link of NIC {name:?} cannot be set: {reason}");
                then.push(Effect::warn(text));
            }
            (_, None) => {}
        }
    }

    fn stop(&mut self, now: Instant, signal: &str, then: &mut Vec<Effect>) {
        match self.phase {
            Phase::Idle | Phase::Preparing | Phase::Starting => {
                let text = format!("{signal}: there is no machine yet, leaving at once");
                then.push(Effect::info(text));
                then.push(Effect::Exit(Exit::Success));
            }
            Phase::Up if self.kill_at.is_none() => {
                let text = format!("{signal}: virt-handler is asked to shut the machine down");
                then.push(Effect::info(text));
                self.grace.marked_for_graceful_shutdown = Some(true);
                self.kill_at = Some(now + self.limits.grace);
            }
            Phase::Up | Phase::Over { .. } | Phase::Leaving { .. } => {}
        }
    }

    fn tick(&mut self, now: Instant, time: SystemTime, then: &mut Vec<Effect>) {
        self.live(now, LifeInput::Tick, then);
        let is_due = |until: Instant| until <= now;
        match self.phase {
            Phase::Idle | Phase::Preparing | Phase::Starting if is_due(self.limits.start_by) => {
                let text = "there is no machine in the time that --qemu-timeout gives";
                then.push(Effect::error(text));
                then.push(Effect::Exit(Exit::Internal));
            }
            Phase::Up if self.kill_at.is_some_and(is_due) => {
                let text = "the guest did not power off in its grace period: ending it";
                then.push(Effect::warn(text));
                self.kill_at = Some(now + KILL_AGAIN);
                self.end(now, then);
            }
            Phase::Over { until, .. } if is_due(until) => {
                then.push(Effect::info(
                    "virt-handler did not delete the domain in time",
                ));
                self.leave(now + UNDELETED_TIMEOUT, time, then);
            }
            Phase::Leaving { until } if is_due(until) => then.push(Effect::Exit(Exit::Success)),
            _ => {}
        }
    }

    /// Sees what has become of the machine, and tells virt-handler what it does not know.
    fn look(&mut self, now: Instant, time: SystemTime, then: &mut Vec<Effect>) {
        if self.phase == Phase::Starting {
            match self.life.machine() {
                MachineState::Running => self.started(now, then),
                MachineState::Paused => {
                    self.paused_by_user = true;
                    self.started(now, then);
                }
                _ => {}
            }
        }
        if !self.alone && self.life.is_over() {
            let (outcome, death) = std::mem::take(&mut self.life).outcome();
            then.push(Effect::Ended(LauncherEvent::ended(&outcome, death)));
            self.alone = true;
            self.ended(now, &outcome, then);
        }
        // Before the domain is told to be gone, after which nothing is.
        self.dump.look(time, then);
        if self.deleted && matches!(self.phase, Phase::Over { .. }) {
            self.leave(now + LAST_EVENT_TIMEOUT, time, then);
        }
        self.publish(then);
    }

    fn started(&mut self, now: Instant, then: &mut Vec<Effect>) {
        self.phase = Phase::Up;
        answer_all(&mut self.syncs, &Ok(String::new()), then);
        self.change_disks(now, then);
        self.change_nics(now, &[], then);
        self.grow_disks(now, then);
    }

    fn ended(&mut self, now: Instant, outcome: &Outcome, then: &mut Vec<Effect>) {
        let message = outcome.to_string();
        self.agent = AgentView::default();
        self.counted(Err(message.clone()), then);
        self.pending.clear();
        self.dump.end(Err(message.clone()));
        match self.phase {
            Phase::Idle => {
                then.push(Effect::error(message));
                then.push(Effect::Exit(Exit::Internal));
            }
            Phase::Preparing | Phase::Starting => self.fail(now, message, then),
            Phase::Up => {
                then.push(Effect::info(message.clone()));
                answer_all(&mut self.kills, &Ok(String::new()), then);
                let condition = match outcome {
                    Outcome::PoweredOff => Condition::PoweredOff,
                    Outcome::Rebooted | Outcome::Stopped => Condition::Destroyed,
                    _ => Condition::Crashed,
                };
                if condition == Condition::Crashed {
                    let reason = match outcome {
                        Outcome::Crashed(_) => "GuestPanicked",
                        _ => "MachineFailed",
                    };
                    then.push(Effect::Warn { reason, message });
                }
                let until = now + DELETE_TIMEOUT;
                self.phase = Phase::Over { condition, until };
            }
            Phase::Over { .. } | Phase::Leaving { .. } => {}
        }
    }

    /// Tells virt-handler that nothing is left, and then leaves.
    fn leave(&mut self, until: Instant, time: SystemTime, then: &mut Vec<Effect>) {
        self.phase = Phase::Leaving { until };
        self.gone_since = Some(rfc3339(time));
        self.publish(then);
    }
}

fn answer_all(tokens: &mut Vec<u64>, answer: &Answer, then: &mut Vec<Effect>) {
    for token in tokens.drain(..) {
        then.push(Effect::Answer {
            token,
            answer: answer.clone(),
        });
    }
}

#[cfg(test)]
mod tests;
