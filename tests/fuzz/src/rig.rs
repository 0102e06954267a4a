//! A virtio device whose driver, kicks and kernel events come from a fuzzer's input, on one thread.

use std::sync::Arc;

use devices::GuestMemory;
use devices::virtio::testing::{
    Buffer, F_INDIRECT, FakeIrq, GuestQueue, event_fd, write_descriptor,
};
use devices::virtio::{Activation, QueueError, QueueHandler, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

use crate::input::Input;
use crate::memory::{self, HEAP, QUEUES};

/// Entries of every queue: small, so that indexes wrap and tables fill.
const SIZE: u16 = 16;
/// Calls that a handler gets for its own kicks before the next step.
const PATIENCE: usize = 64;

const F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;

/// A device in use.
pub struct Rig<D> {
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// The device.
    pub device: D,
    /// The driver's side of each queue.
    pub queues: Vec<GuestQueue>,
    handlers: Vec<Handler>,
    features: u64,
    irq: Arc<FakeIrq>,
}

struct Handler {
    handler: Box<dyn QueueHandler>,
    tokens: Vec<u16>,
    /// As in a worker, a handler that failed is not called again.
    failed: bool,
}

impl Handler {
    fn note(&mut self, result: Result<(), QueueError>) {
        if let Err(error) = result {
            assert!(
                !matches!(error, QueueError::Backend(_)),
                "the guest broke the host's side: {error:?}"
            );
            self.handler.drain();
            self.failed = true;
        }
    }

    fn kick(&mut self, position: usize) {
        if !self.failed && position < self.handler.queues().len() {
            let result = self.handler.kicked(position);
            self.note(result);
        }
    }

    fn readable(&mut self, token: u8) {
        if !self.failed && !self.tokens.is_empty() {
            let token = self.tokens[usize::from(token) % self.tokens.len()];
            let result = self.handler.readable(token);
            self.note(result);
        }
    }

    /// Calls the handler for its own kicks, as its worker would.
    fn settle(&mut self) {
        for _ in 0..PATIENCE {
            let queues = self.handler.queues();
            let due = queues.iter().position(|queue| queue.kick().read().is_ok());
            match due {
                Some(position) => self.kick(position),
                None => break,
            }
        }
        if !self.failed {
            self.handler.drain();
        }
    }
}

impl<D: VirtioDevice> Rig<D> {
    /// A driver that accepts `features` (besides those of transport and ring) of `device`.
    pub fn new(device: D, memory: Arc<GuestMemory>, features: u64, event_idx: bool) -> Self {
        let mut rig = Self {
            memory,
            device,
            queues: Vec::new(),
            handlers: Vec::new(),
            features: features | F_VERSION_1,
            irq: Arc::default(),
        };
        rig.reset(event_idx);
        rig
    }

    /// A device reset, and a driver that starts again with empty queues.
    pub fn reset(&mut self, event_idx: bool) {
        self.stop();
        if event_idx {
            self.features |= F_EVENT_IDX;
        } else {
            self.features &= !F_EVENT_IDX;
        }
        let count = self.device.queue_sizes().len() as u64;
        let bytes = GuestQueue::bytes(SIZE);
        assert!(QUEUES + count * bytes <= HEAP);
        let queue = |index| {
            let queue = GuestQueue::new(&self.memory, QUEUES + index * bytes, SIZE);
            if event_idx {
                queue.with_event_idx()
            } else {
                queue
            }
        };
        self.queues = (0..count).map(queue).collect();
        let device_side = |(index, queue): (usize, &GuestQueue)| {
            queue.device_side(index as u16, Arc::new(event_fd()), self.irq.clone())
        };
        let activation = Activation {
            features: self.features,
            queues: self.queues.iter().enumerate().map(device_side).collect(),
            resumed: false,
            config_irq: self.irq.clone(),
        };
        let handlers = self.device.activate(activation).expect("queues are right");
        let handler = |handler: Box<dyn QueueHandler>| Handler {
            tokens: handler.fds().into_iter().map(|watch| watch.token).collect(),
            handler,
            failed: false,
        };
        self.handlers = handlers.into_iter().map(handler).collect();
        // As a worker does first.
        for handler in &mut self.handlers {
            (0..handler.handler.queues().len()).for_each(|position| handler.kick(position));
        }
    }

    /// Does what the input says until it ends; `more` is for what only this device has.
    pub fn play(&mut self, input: &mut Input<'_>, mut more: impl FnMut(&mut Self, &mut Input<'_>)) {
        while !input.is_empty() {
            match input.below(12) {
                0 => self.describe(input),
                1 => self.chain(input),
                2 => self.indirect(input),
                3 => self.offer(input),
                4 => memory::put(&self.memory, input),
                5 | 6 => self.kick(input),
                7 => self.readable(input),
                8 => self.settle(),
                9 => self.wishes(input),
                10 => more(self, input),
                _ => self.reset(input.u8() & 1 != 0),
            }
        }
        self.settle();
    }

    /// Serves everything that is offered.
    pub fn settle(&mut self) {
        self.handlers.iter_mut().for_each(Handler::settle);
    }

    /// Kicks a queue of the first handler and serves it.
    pub fn serve(&mut self, position: usize) {
        self.handlers[0].kick(position);
        assert!(!self.handlers[0].failed, "a sane driver was refused");
        self.settle();
    }

    /// Every descriptor of every handler is ready.
    pub fn all_ready(&mut self) {
        for handler in &mut self.handlers {
            (0..handler.tokens.len() as u8).for_each(|token| handler.readable(token));
        }
        self.settle();
    }

    fn queue(&mut self, input: &mut Input<'_>) -> &mut GuestQueue {
        let index = usize::from(input.u8()) % self.queues.len();
        &mut self.queues[index]
    }

    fn describe(&mut self, input: &mut Input<'_>) {
        let (index, flags, next) = (input.u8(), input.u8(), input.u8());
        let (address, len) = (memory::address(input), memory::len(input));
        let queue = self.queue(input);
        let index = u16::from(index) % SIZE;
        queue.write_descriptor(index, address, len, flags.into(), next.into());
    }

    /// A chain as drivers make it, readable before writable buffers.
    fn chain(&mut self, input: &mut Input<'_>) {
        let (readable, writable) = (input.below(5), input.below(5));
        let mut buffers = Vec::new();
        for index in 0..readable + writable {
            buffers.push(Buffer {
                address: memory::address(input),
                len: memory::len(input),
                writable: index >= readable,
            });
        }
        if buffers.is_empty() {
            return;
        }
        match input.u8() {
            table if table & 1 != 0 => {
                let table = HEAP + 16 * u64::from(table);
                self.queue(input).add_indirect(table, &buffers)
            }
            _ => self.queue(input).add(&buffers),
        };
    }

    /// An indirect table with anything in it, and a descriptor that names it.
    fn indirect(&mut self, input: &mut Input<'_>) {
        let table = HEAP + 16 * u64::from(input.u8());
        for index in 0..u64::from(input.below(20)) {
            let (flags, next) = (input.u8(), input.u8());
            let (address, len) = (memory::address(input), memory::len(input));
            let at = table + 16 * index;
            write_descriptor(&self.memory, at, address, len, flags.into(), next.into());
        }
        let (index, len, flags) = (input.u8(), input.u16(), input.u8());
        let (index, flags) = (u16::from(index) % SIZE, F_INDIRECT | u16::from(flags));
        let queue = self.queue(input);
        queue.write_descriptor(index, table, len.into(), flags, 0);
        queue.offer(index);
    }

    fn offer(&mut self, input: &mut Input<'_>) {
        let (kind, value) = (input.below(4), input.u8());
        match kind {
            0 => {
                let index = input.u16();
                self.queue(input).set_avail_idx(index);
            }
            1 => self.queue(input).offer(value.into()),
            _ => self.queue(input).offer(u16::from(value) % SIZE),
        }
    }

    fn kick(&mut self, input: &mut Input<'_>) {
        let handler = usize::from(input.u8()) % self.handlers.len();
        self.handlers[handler].kick(input.below(3).into());
    }

    fn readable(&mut self, input: &mut Input<'_>) {
        let handler = usize::from(input.u8()) % self.handlers.len();
        self.handlers[handler].readable(input.u8());
    }

    /// When the driver wants interrupts.
    fn wishes(&mut self, input: &mut Input<'_>) {
        let (flags, event) = (input.u8(), input.u16());
        let queue = self.queue(input);
        queue.set_avail_flags(u16::from(flags) & 1);
        queue.set_used_event(event);
    }

    /// Ends the driver's use.
    pub fn into_device(mut self) -> D {
        self.stop();
        self.device
    }

    /// What workers do at their end.
    fn stop(&mut self) {
        for handler in &mut self.handlers {
            handler.handler.drain();
        }
        self.handlers.clear();
    }

    /// Writes to guest memory where there is some.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("in memory");
    }

    /// Reads guest memory.
    pub fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("in memory");
        bytes
    }
}
