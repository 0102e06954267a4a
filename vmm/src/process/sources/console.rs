//! The console's descriptors: the queue between it and the serial port, and the host's side.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use devices::legacy::serial::SerialConsole;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::{Inbox, News};
use crate::console::Console;
use crate::process::life::Input;

/// Output of the guest waits, or there is room for input.
const QUEUE: u32 = 0;
/// The other side came, went, wrote or took something.
const SIDE: u32 = 1;

/// The console and the serial port of the machine of now.
pub(in crate::process) struct ConsoleSource {
    console: Console,
    serial: Arc<SerialConsole>,
    inbox: Inbox,
}

impl ConsoleSource {
    pub(in crate::process) fn new(
        console: Console,
        serial: Arc<SerialConsole>,
        inbox: Inbox,
    ) -> Self {
        Self {
            console,
            serial,
            inbox,
        }
    }

    /// The machine was built anew.
    pub(in crate::process) fn set_serial(&mut self, serial: Arc<SerialConsole>) {
        self.serial = serial;
        self.work();
    }

    /// Writes out what is left, at the end.
    pub(in crate::process) fn drain(&mut self) {
        self.console.drain();
    }

    fn work(&mut self) {
        if self.console.work(&self.serial) {
            self.inbox.input(Input::ConsoleEscape);
        }
        if self.console.came_further() {
            self.inbox.push(News::CameFurther);
        }
    }
}

impl MutEventSubscriber for ConsoleSource {
    fn process(&mut self, event: Events, _ops: &mut EventOps<'_>) {
        if event.data() == QUEUE {
            self.console.queue().acknowledge();
        }
        self.work();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let queue = self.console.queue().as_fd().as_raw_fd();
        let side = self.console.events().as_raw_fd();
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        for events in [
            Events::with_data(&queue, QUEUE, EventSet::IN),
            Events::with_data(&side, SIDE, edges),
        ] {
            self.inbox.watch(ops, events);
        }
        // A file as input is read whenever there is room, and nothing is heard of it.
        self.work();
    }
}
