//! The interrupt of the generic event device, when KVM has let go of its line.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use devices::legacy::power::PowerControl;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Inbox;
use crate::interrupts::Line;

/// Raises the line again while the guest has not read of all that happened: an event that comes while
/// the guest serves another one, with the line masked, would be lost.
pub(in crate::process) struct PowerSource {
    pub(in crate::process) line: Arc<Line>,
    pub(in crate::process) power: Arc<PowerControl>,
    pub(in crate::process) inbox: Inbox,
}

impl MutEventSubscriber for PowerSource {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if self.line.was_released() {
            self.power.raise_again();
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Some(released) = self.line.released() {
            let fd = released.as_raw_fd();
            self.inbox.watch(ops, Events::new(&fd, EventSet::IN));
        }
    }
}
