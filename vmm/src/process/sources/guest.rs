//! What the guest asks of the machine, through the registers of its power control.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use devices::legacy::power::{Signal, Signals};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Inbox;
use crate::control::CrashReport;
use crate::process::life::Input;

/// The guest's signals; they outlive a reset.
pub(in crate::process) struct GuestSource {
    pub(in crate::process) signals: Arc<Signals>,
    pub(in crate::process) inbox: Inbox,
}

impl MutEventSubscriber for GuestSource {
    /// The worst comes first, since the first decides how a run ended.
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let pending = self.signals.take();
        let is_pending = |signal: Signal| pending & signal as u32 != 0;
        if is_pending(Signal::Panicked) {
            let report = CrashReport {
                reason: "the guest kernel panicked (pvpanic)".to_owned(),
                ..Default::default()
            };
            self.inbox.input(Input::GuestPanicked(Box::new(report)));
        }
        if is_pending(Signal::CrashLoaded) {
            self.inbox.input(Input::GuestPanicNotice);
        }
        if is_pending(Signal::Ejected) {
            self.inbox.input(Input::GuestEjected);
        }
        if is_pending(Signal::PowerOff) {
            self.inbox.input(Input::GuestPowerOff);
        }
        if is_pending(Signal::Reset) {
            self.inbox.input(Input::GuestReset);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let fd = self.signals.as_fd().as_raw_fd();
        self.inbox.watch(ops, Events::new(&fd, EventSet::IN));
    }
}
