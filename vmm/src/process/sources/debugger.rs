//! The end of the machine by its debugger.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Inbox;
use crate::debug::Seat;
use crate::process::life::Input;

/// The debugger's seat, which outlives a reset.
pub(in crate::process) struct DebuggerSource {
    pub(in crate::process) seat: Arc<Seat>,
    pub(in crate::process) inbox: Inbox,
}

impl MutEventSubscriber for DebuggerSource {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if self.seat.take_killed() {
            self.inbox.input(Input::Killed);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let fd = self.seat.killed_fd().as_raw_fd();
        self.inbox.watch(ops, Events::new(&fd, EventSet::IN));
    }
}
