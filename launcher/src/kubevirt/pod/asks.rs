//! What follows on each thing that virt-handler asks.

use std::os::fd::OwnedFd;
use std::time::{Instant, SystemTime};

use devices::virtio::net::NetCommand;
use serde_json::json;
use vmm::control::{Command, MachineState, Refusal, Reply, Verdict};

use super::super::clock::rfc3339;
use super::{Answer, Ask, Condition, Effect, Pending, Phase, Pod, Wanted};
use super::{LAST_EVENT_TIMEOUT, LifeInput};
use crate::supervise::{Asker, ClientCall, LAUNCHER};

/// As virt-handler's users know it.
const NO_DOMAIN: &str = "Domain not found.";

impl Pod {
    pub(super) fn ask(
        &mut self,
        now: Instant,
        time: SystemTime,
        token: u64,
        ask: Ask,
        then: &mut Vec<Effect>,
    ) {
        let running = matches!(self.phase, Phase::Up);
        let answer = match ask {
            Ask::Sync(wanted) => return self.sync(now, token, *wanted, then),
            Ask::Domain => Ok(self
                .condition()
                .map(|now| self.domain(now))
                .unwrap_or_default()),
            Ask::Stats if running => return self.count(now, token, then),
            Ask::Metrics if running => return self.measure(now, token, then),
            Ask::GuestInfo => Ok(self.agent.info().to_string()),
            Ask::AgentVersion => Ok(self.agent.version.clone()),
            Ask::Users => Ok(self.agent.users().to_string()),
            Ask::Filesystems => Ok(self.agent.filesystems().to_string()),
            Ask::ProbesArePaused => match self.condition() {
                Some(Condition::PausedByUser) => done(),
                _ if self.pause_probes || self.dump.is_under_way() => done(),
                _ => Err("The guest's agent is to be asked".to_owned()),
            },
            Ask::PingFailed(message) => {
                let reason = "GuestAgentPingFailed";
                then.push(Effect::Warn { reason, message });
                done()
            }
            // A report without a name is dropped.
            Ask::Stats => Ok("{}".to_owned()),
            Ask::Metrics => Err("There is no machine".to_owned()),
            Ask::Pause | Ask::Unpause | Ask::Reset | Ask::SoftReboot | Ask::Dump(_) if !running => {
                Err(NO_DOMAIN.to_owned())
            }
            Ask::Dump(path) => self.dump_memory(time, path, then),
            Ask::Pause => match self.life.machine() {
                MachineState::Running => {
                    self.paused_by_user = true;
                    return self.call(now, Command::Pause, Pending::Pause(token), then);
                }
                _ => done(),
            },
            Ask::Unpause => return self.call(now, Command::Resume, Pending::Unpause(token), then),
            Ask::Reset => return self.call(now, Command::Reset, Pending::Answer(token), then),
            Ask::SoftReboot => {
                return self.call(now, Command::Reboot, Pending::Answer(token), then);
            }
            Ask::Shutdown if running => return self.shut_down(now, time, token, then),
            Ask::Kill if running => {
                self.kills.push(token);
                return self.end(now, then);
            }
            Ask::Shutdown | Ask::Kill => done(),
            Ask::Delete => {
                match self.phase {
                    Phase::Over { .. } => self.leave(now + LAST_EVENT_TIMEOUT, time, then),
                    Phase::Up => self.deleted = true,
                    _ => {}
                }
                done()
            }
        };
        then.push(Effect::Answer { token, answer });
    }

    /// The same as often as it is asked: there is one machine.
    fn sync(&mut self, now: Instant, token: u64, mut wanted: Wanted, then: &mut Vec<Effect>) {
        let is_ours = self.is_ours(&wanted);
        if is_ours.is_ok() {
            self.pause_probes = wanted.pause_probes;
            self.growth.want(std::mem::take(&mut wanted.rooms));
            if wanted.refused.is_none() {
                self.disks.want(std::mem::take(&mut wanted.disks));
                self.nics.want(std::mem::take(&mut wanted.nics));
            }
        }
        let answer = match (is_ours, self.phase) {
            (Err(reason), _) => Err(reason),
            (Ok(()), Phase::Idle) => {
                self.identity = wanted.identity.clone();
                self.grace.deletion_grace_period_seconds = wanted.grace_seconds;
                self.phase = Phase::Preparing;
                self.syncs.push(token);
                return then.push(Effect::Prepare(Box::new(wanted)));
            }
            (Ok(()), Phase::Preparing | Phase::Starting) => return self.syncs.push(token),
            (Ok(()), Phase::Up) => {
                self.grace.deletion_grace_period_seconds = wanted.grace_seconds;
                self.set_links(now, &wanted.links, then);
                self.change_disks(now, then);
                self.change_nics(now, &wanted.absent, then);
                self.grow_disks(now, then);
                // Another try of what the machine was paused for.
                if matches!(
                    self.condition(),
                    Some(Condition::PausedByDisk | Condition::Paused)
                ) {
                    return self.call(now, Command::Resume, Pending::Answer(token), then);
                }
                wanted.refused.map_or_else(done, Err)
            }
            (Ok(()), Phase::Over { .. } | Phase::Leaving { .. }) => match &self.failure {
                Some(text) => Err(text.clone()),
                None if matches!(&*wanted.phase, "Running" | "Succeeded" | "Failed") => done(),
                None => Err("The machine has ended, and a pod has one".to_owned()),
            },
        };
        then.push(Effect::Answer { token, answer });
    }

    /// NICs whose links are not as the VMI has them.
    fn set_links(&mut self, now: Instant, wanted: &[(String, bool)], then: &mut Vec<Effect>) {
        for nic in 0..self.facts.interfaces.len() {
            let known = &self.facts.interfaces[nic];
            let link = wanted.iter().find(|(name, _)| *name == known.name);
            let Some(&(_, up)) = link.filter(|(_, up)| *up != known.link_up) else {
                continue;
            };
            let command = Command::Device {
                name: known.device.clone(),
                order: json!(NetCommand::SetLink { up }),
            };
            self.call(now, command, Pending::Link { nic, up }, then);
        }
    }

    /// A pod belongs to one VMI; what is not said may be anything.
    fn is_ours(&self, wanted: &Wanted) -> Result<(), String> {
        let (ours, theirs) = (&self.identity, &wanted.identity);
        for (what, ours, theirs) in [
            ("name", &ours.name, &theirs.name),
            ("namespace", &ours.namespace, &theirs.namespace),
            ("UID", &ours.uid, &theirs.uid),
        ] {
            if !ours.is_empty() && ours != theirs {
                return Err(format!(
                    "This pod is for the VMI of {what} {ours:?}, not {theirs:?}"
                ));
            }
        }
        Ok(())
    }

    /// The guest is asked to power off; virt-handler asks again, and counts its grace from the first time.
    fn shut_down(&mut self, now: Instant, time: SystemTime, token: u64, then: &mut Vec<Effect>) {
        self.grace
            .deletion_timestamp
            .get_or_insert_with(|| rfc3339(time));
        // One that is paused could not power off.
        if self.life.machine() == MachineState::Paused {
            self.paused_by_user = false;
            self.order(now, Command::Resume, then);
        }
        self.call(now, Command::PowerButton, Pending::Answer(token), then);
    }

    /// People look at the machine, too, and may do with it what they may without KubeVirt.
    pub(super) fn obey(&mut self, now: Instant, call: ClientCall, then: &mut Vec<Effect>) {
        let refuse = |cause: &str| Refusal::Failed {
            causes: vec![cause.to_owned()],
        };
        let is_status = call.command == Command::Status;
        let verdict = match self.phase {
            _ if call.open.is_some() => {
                Verdict::Error(refuse("under KubeVirt no file is opened for a client"))
            }
            _ if is_status && self.alone => Verdict::Result(MachineState::Ended.into()),
            Phase::Idle | Phase::Preparing | Phase::Starting if !is_status => {
                Verdict::Error(refuse("virt-handler has not started the machine yet"))
            }
            Phase::Over { .. } | Phase::Leaving { .. } if !is_status => {
                Verdict::Error(Refusal::Ended)
            }
            _ if self.is_virt_handlers(&call.command) => Verdict::Error(refuse(
                "virt-handler sets this NIC's link or has this device come and go, as the VMI says: change the VMI",
            )),
            _ => return self.live(now, LifeInput::Call(call), then),
        };
        let Asker { client, id } = call.asker;
        let reply = Reply { id, verdict };
        then.push(Effect::Reply { client, reply });
    }

    /// It would change what virt-handler takes to be as it last had it.
    fn is_virt_handlers(&self, command: &Command) -> bool {
        match command {
            Command::Device { name, .. } => {
                let mut nics = self.facts.interfaces.iter();
                nics.any(|nic| nic.device == *name)
            }
            Command::Detach { name, .. } => {
                let mut disks = self.facts.disks.iter();
                let mut nics = self.facts.interfaces.iter();
                self.disks.has(name)
                    || disks.any(|disk| disk.name == *name)
                    || nics.any(|nic| nic.device == *name)
            }
            _ => false,
        }
    }

    pub(super) fn end(&mut self, now: Instant, then: &mut Vec<Effect>) {
        self.order(now, Command::Stop, then);
    }

    /// A command whose answer nobody waits for.
    fn order(&mut self, now: Instant, command: Command, then: &mut Vec<Effect>) {
        let call = client_call(0, command);
        self.live(now, LifeInput::Call(call), then);
    }

    pub(super) fn call(
        &mut self,
        now: Instant,
        command: Command,
        pending: Pending,
        then: &mut Vec<Effect>,
    ) {
        self.call_with(now, command, Vec::new(), pending, then);
    }

    /// A command that comes with descriptors.
    pub(super) fn call_with(
        &mut self,
        now: Instant,
        command: Command,
        descriptors: Vec<OwnedFd>,
        pending: Pending,
        then: &mut Vec<Effect>,
    ) {
        self.last_call += 1;
        self.pending.insert(self.last_call, pending);
        let call = ClientCall {
            descriptors,
            ..client_call(self.last_call, command)
        };
        self.live(now, LifeInput::Call(call), then);
    }
}

fn client_call(id: u64, command: Command) -> ClientCall {
    ClientCall {
        asker: Asker {
            client: LAUNCHER,
            id,
        },
        command,
        open: None,
        descriptors: Vec::new(),
    }
}

fn done() -> Answer {
    Ok(String::new())
}
