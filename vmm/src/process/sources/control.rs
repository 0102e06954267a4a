//! Calls of the launcher.

use std::os::fd::{AsRawFd, BorrowedFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::{Inbox, News};
use crate::control::{self, Call, ControlError};
use crate::process::life::Input;

/// The vm process's end of the control socket.
pub(in crate::process) struct ControlSource<'a> {
    pub(in crate::process) socket: BorrowedFd<'a>,
    pub(in crate::process) inbox: Inbox,
}

impl MutEventSubscriber for ControlSource<'_> {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        match control::receive::<Call>(self.socket) {
            Ok((Call { id, command }, descriptors)) => self.inbox.input(Input::Call {
                id,
                command,
                descriptors,
            }),
            Err(ControlError::Closed) => self.inbox.input(Input::Alone),
            Err(error) => self.inbox.push(News::Broken(error.into())),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let events = Events::new(&self.socket.as_raw_fd(), EventSet::IN);
        self.inbox.watch(ops, events);
    }
}
