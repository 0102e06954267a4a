//! What virt-handler is told of the domain.

use vmm::control::MachineState;

use super::super::domain::{Condition, Domain};
use super::{Effect, Phase, Pod};

impl Pod {
    pub(super) fn publish(&mut self, then: &mut Vec<Effect>) {
        let condition = match self.phase {
            Phase::Leaving { .. } => Some(Condition::Gone),
            _ => self.condition(),
        };
        let Some(domain) = condition.map(|condition| self.domain(condition)) else {
            return;
        };
        if self.published.as_ref() != Some(&domain) {
            let kind = match &self.published {
                None => "ADDED",
                Some(_) => "MODIFIED",
            };
            self.published = Some(domain.clone());
            let is_last = matches!(self.phase, Phase::Leaving { .. });
            then.push(Effect::Publish {
                kind,
                domain,
                is_last,
            });
        }
    }

    pub(super) fn domain(&self, condition: Condition) -> String {
        let domain = Domain {
            identity: &self.identity,
            facts: &self.facts,
            agent: &self.agent,
            credentials: self.credentials.as_ref(),
            dump: self.dump.told(),
            grace: &self.grace,
            condition,
            gone_since: self.gone_since.as_deref(),
        };
        domain.to_json()
    }

    /// What the machine does; nothing where there is none.
    pub(super) fn condition(&self) -> Option<Condition> {
        match self.phase {
            Phase::Idle | Phase::Preparing | Phase::Starting | Phase::Leaving { .. } => None,
            Phase::Over { condition, .. } => Some(condition),
            Phase::Up => Some(match self.life.machine() {
                MachineState::Paused if self.paused_by_user => Condition::PausedByUser,
                MachineState::Paused if self.failing_disk => Condition::PausedByDisk,
                // It goes on by itself.
                MachineState::Paused if self.dump.is_under_way() => Condition::Running,
                MachineState::Paused => Condition::Paused,
                MachineState::ShuttingDown | MachineState::Ended => Condition::ShuttingDown,
                _ => Condition::Running,
            }),
        }
    }
}
