//! What a vCPU reports that cannot go on.

use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Inbox;
use crate::process::causes;
use crate::process::life::Input;
use crate::vcpu::{VcpuEvent, VcpuEvents};

/// The vCPUs of one machine.
pub(in crate::process) struct VcpuSource {
    pub(in crate::process) vcpus: VcpuEvents,
    /// Which machine that is, counted by resets.
    pub(in crate::process) machine: u32,
    pub(in crate::process) inbox: Inbox,
}

impl MutEventSubscriber for VcpuSource {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let machine = self.machine;
        match self.vcpus.take() {
            Some(VcpuEvent::Crashed(report)) => {
                self.inbox.input(Input::GuestCrashed { machine, report });
            }
            Some(VcpuEvent::Failed(error)) => {
                let mut chain = vec!["A vCPU cannot go on".to_owned()];
                chain.append(&mut causes(&*error));
                let causes = chain;
                self.inbox.input(Input::Failed { machine, causes });
            }
            None => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let fd = self.vcpus.event_fd().as_raw_fd();
        self.inbox.watch(ops, Events::new(&fd, EventSet::IN));
    }
}
