//! Jobs that are done.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::{Inbox, News};
use crate::process::operator::Completions;

/// The operator's answers.
pub(in crate::process) struct OperatorSource {
    pub(in crate::process) completions: Arc<Completions>,
    pub(in crate::process) inbox: Inbox,
}

impl MutEventSubscriber for OperatorSource {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        while let Some(completion) = self.completions.take() {
            self.inbox.push(News::Completion(completion));
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let fd = self.completions.as_fd().as_raw_fd();
        self.inbox.watch(ops, Events::new(&fd, EventSet::IN));
    }
}
