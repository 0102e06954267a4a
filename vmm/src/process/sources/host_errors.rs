//! Errors of the host that devices met.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use devices::host_errors::HostErrors;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Inbox;
use crate::control::HostError;
use crate::process::life::Input;

/// The devices' errors, logged and passed on; they outlive a reset.
pub(in crate::process) struct HostErrorSource {
    pub(in crate::process) errors: Arc<HostErrors>,
    pub(in crate::process) inbox: Inbox,
}

impl MutEventSubscriber for HostErrorSource {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        while let Some(error) = self.errors.take() {
            let cause = io::Error::from_raw_os_error(error.errno);
            tracing::warn!(
                device = &*error.device,
                operation = error.operation,
                offset = error.offset,
                untold = error.untold,
                stops = error.stops,
                error = &cause as &dyn std::error::Error,
                "the host cannot do what the guest asked of its device"
            );
            self.inbox.input(Input::HostError(Box::new(HostError {
                device: error.device.to_string(),
                operation: error.operation.to_owned(),
                offset: error.offset,
                errno: error.errno,
                message: cause.to_string(),
                untold: error.untold,
                stops: error.stops,
            })));
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let fd = self.errors.as_fd().as_raw_fd();
        self.inbox.watch(ops, Events::new(&fd, EventSet::IN));
    }
}
