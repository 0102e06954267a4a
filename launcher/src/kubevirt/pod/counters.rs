//! The machine's counters: one look at them serves all who ask meanwhile, each in its own form.

use std::time::Instant;

use vmm::control::{Command, Stats};

use super::super::stats::domain_stats;
use super::{Effect, Pending, Pod, answer_all};
use crate::metrics::{self, Labels};

/// Who waits for them.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// In virt-handler's form.
    stats: Vec<u64>,
    /// In Prometheus'.
    metrics: Vec<u64>,
}

impl Pod {
    /// Virt-handler asks.
    pub(super) fn count(&mut self, now: Instant, token: u64, then: &mut Vec<Effect>) {
        self.counters.stats.push(token);
        self.look_at_counters(now, then);
    }

    /// Prometheus asks.
    pub(super) fn measure(&mut self, now: Instant, token: u64, then: &mut Vec<Effect>) {
        self.counters.metrics.push(token);
        self.look_at_counters(now, then);
    }

    fn look_at_counters(&mut self, now: Instant, then: &mut Vec<Effect>) {
        if self.counters.stats.len() + self.counters.metrics.len() == 1 {
            self.call(now, Command::Stats, Pending::Stats, then);
        }
    }

    /// What they are, or why they are not to be had.
    pub(super) fn counted(&mut self, stats: Result<Stats, String>, then: &mut Vec<Effect>) {
        if !self.counters.stats.is_empty() {
            let said = stats.as_ref().map_err(Clone::clone);
            let said = said.map(|stats| domain_stats(&self.identity, &self.facts, stats));
            let said = said.map(|stats| stats.to_string());
            answer_all(&mut self.counters.stats, &said, then);
        }
        if !self.counters.metrics.is_empty() {
            let labels = self.labels();
            let said = stats.map(|stats| metrics::text(&stats, &labels));
            answer_all(&mut self.counters.metrics, &said, then);
        }
    }

    /// As KubeVirt's own metrics have them: devices by their names in the VMI.
    fn labels(&self) -> Labels {
        let nics = self.facts.interfaces.iter();
        let nics = nics.map(|nic| (nic.device.clone(), nic.name.clone()));
        let identity = [
            ("name", &self.identity.name),
            ("namespace", &self.identity.namespace),
        ];
        Labels::of_machine(identity, nics)
    }
}

#[cfg(test)]
mod tests {
    use devices::virtio::net::NetStats;
    use vmm::control::{Answer, MachineState};

    use super::super::super::domain::InterfaceFacts;
    use super::super::tests::Rig;
    use super::super::words::Ask;
    use super::*;

    #[test]
    fn one_look_serves_all_who_ask_meanwhile() {
        let mut rig = Rig::up();
        rig.pod.facts.interfaces = vec![InterfaceFacts {
            name: "blue".to_owned(),
            device: "nic-blue".to_owned(),
            mac: [2; 6],
            queues: 1,
            link_up: true,
            comes_and_goes: false,
        }];
        let tokens = [Ask::Metrics, Ask::Stats, Ask::Metrics].map(|ask| rig.ask(ask));
        assert_eq!(rig.commands(), [&Command::Stats]);
        let nic = serde_json::to_value(NetStats::default()).expect("JSON");
        let stats = Stats {
            devices: [("nic-blue".to_owned(), nic)].into(),
            ..Stats::default()
        };
        rig.answered(Answer {
            stats: Some(Box::new(stats)),
            ..MachineState::Running.into()
        });
        let answers = tokens.map(|token| rig.answer(token).clone().expect("counters"));
        let line = "kubevirt_vmi_network_receive_bytes_total\
                    {interface=\"blue\",name=\"vm\",namespace=\"ns\"} 0\n";
        assert!(answers[0].contains(line), "{}", answers[0]);
        assert!(answers[1].contains("\"Name\":\"ns_vm\""), "{}", answers[1]);
        assert_eq!(answers[0], answers[2]);
        // And the next one looks anew.
        rig.ask(Ask::Metrics);
        assert_eq!(rig.commands().len(), 2);
    }

    #[test]
    fn there_are_none_without_a_machine() {
        let mut rig = Rig::new();
        let token = rig.ask(Ask::Metrics);
        rig.answer(token).as_ref().expect_err("no machine");
    }
}
