//! The console's descriptors: which of them to wait for, and what they bring.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use devices::legacy::serial::SerialConsole;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Inbox;
use crate::console::{Console, InputResult, OutputResult};
use crate::process::life::Input;

/// Output of the guest waits, or there is room for input.
const QUEUE: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 2;
const LISTENER: u32 = 3;

/// The console and the serial port of the machine of now.
pub(in crate::process) struct ConsoleSource {
    console: Console,
    serial: Arc<SerialConsole>,
    inbox: Inbox,
    input_watched: bool,
    output_watched: bool,
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
            input_watched: false,
            output_watched: false,
        }
    }

    /// The machine was built anew.
    pub(in crate::process) fn set_serial(&mut self, serial: Arc<SerialConsole>) {
        self.serial = serial;
    }

    /// Writes out what is left, at the end.
    pub(in crate::process) fn drain(&mut self) {
        self.console.drain();
    }

    /// Watches the input while the UART has room. A regular file cannot be watched; it is read whenever
    /// there is room instead.
    fn watch_input(&mut self, ops: &mut EventOps<'_>) {
        if self.input_watched || self.serial.input_room() == 0 {
            return;
        }
        match (self.console.input()).map(|input| ops.add(events(input, INPUT, EventSet::IN))) {
            Some(Ok(())) => self.input_watched = true,
            Some(Err(_)) if self.console.read_input(&self.serial) == InputResult::Closed => {
                self.close(ops);
            }
            Some(Err(_)) | None => {}
        }
    }

    fn unwatch_input(&mut self, ops: &mut EventOps<'_>) {
        if self.input_watched
            && let Some(input) = self.console.input()
        {
            forget(ops, input);
        }
        self.input_watched = false;
    }

    fn watch_output(&mut self, ops: &mut EventOps<'_>) {
        if !self.output_watched
            && let Some(output) = self.console.output()
        {
            self.output_watched = ops.add(events(output, OUTPUT, EventSet::OUT)).is_ok();
        }
    }

    fn unwatch_output(&mut self, ops: &mut EventOps<'_>) {
        if self.output_watched
            && let Some(output) = self.console.output()
        {
            forget(ops, output);
        }
        self.output_watched = false;
    }

    fn read(&mut self, ops: &mut EventOps<'_>) {
        if self.serial.input_room() == 0 {
            self.unwatch_input(ops);
            return;
        }
        match self.console.read_input(&self.serial) {
            InputResult::Open => {}
            InputResult::Closed => {
                self.close(ops);
                self.accept(ops);
            }
            InputResult::Stop => self.inbox.input(Input::ConsoleEscape),
        }
    }

    /// A descriptor is forgotten before it is closed: its number may soon be another's.
    fn close(&mut self, ops: &mut EventOps<'_>) {
        self.unwatch_input(ops);
        if self.console.has_client() {
            self.unwatch_output(ops);
        }
        self.console.close_input();
    }

    fn write(&mut self, ops: &mut EventOps<'_>) {
        loop {
            match self.console.write_output() {
                OutputResult::Done => return self.unwatch_output(ops),
                OutputResult::Wait => return self.watch_output(ops),
                OutputResult::Gone => {
                    self.unwatch_output(ops);
                    let was_client = self.console.has_client();
                    if was_client {
                        self.unwatch_input(ops);
                    }
                    self.console.close_output();
                    if was_client {
                        self.accept(ops);
                    }
                }
            }
        }
    }

    /// Takes the next client if there is none, or waits for one. A listener is not watched while there is:
    /// a second client in its backlog would wake the loop for ever.
    fn accept(&mut self, ops: &mut EventOps<'_>) {
        let Some(listener) = self.console.listener().map(|fd| fd.as_raw_fd()) else {
            return;
        };
        let _ = ops.remove(Events::empty(&listener));
        if self.console.accept() {
            self.watch_input(ops);
            self.watch_output(ops);
        } else if !self.console.has_client() {
            self.inbox
                .watch(ops, Events::with_data(&listener, LISTENER, EventSet::IN));
        }
    }
}

impl MutEventSubscriber for ConsoleSource {
    fn process(&mut self, event: Events, ops: &mut EventOps<'_>) {
        match event.data() {
            QUEUE => {
                self.console.queue().acknowledge();
                self.watch_input(ops);
                self.write(ops);
            }
            INPUT => self.read(ops),
            OUTPUT => self.write(ops),
            _ => self.accept(ops),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let queue = self.console.queue().as_fd().as_raw_fd();
        self.inbox
            .watch(ops, Events::with_data(&queue, QUEUE, EventSet::IN));
        if let Some(listener) = self.console.listener() {
            self.inbox
                .watch(ops, events(listener, LISTENER, EventSet::IN));
        }
        self.watch_input(ops);
    }
}

fn events(fd: BorrowedFd<'_>, token: u32, set: EventSet) -> Events {
    Events::with_data(&fd.as_raw_fd(), token, set)
}

fn forget(ops: &mut EventOps<'_>, fd: BorrowedFd<'_>) {
    // It was watched, or is already gone.
    let _ = ops.remove(Events::empty(&fd.as_raw_fd()));
}
