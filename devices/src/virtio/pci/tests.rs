//! The transport with a fake driver and a device that echoes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use super::*;
use crate::state::State;
use crate::virtio::queue::VirtQueue;
use crate::virtio::testing::{
    Buffer, F_INDIRECT, FakeDoorbells, FakeRouter, GuestQueue, InlineExecutor, guest_memory,
    wait_for,
};
use crate::virtio::{
    ActivateError, Activation, CommandEffect, DeviceInfo, QueueError, QueueHandler,
};

mod interrupts;
mod lifecycle;
mod registers;
mod saving;

const BAR: u64 = 0x1_0000_0000;
const SIZE: u16 = 8;
const NOTIFY: u64 = layout::NOTIFY as u64;
const TABLE: u64 = layout::MSIX_TABLE as u64;
const PBA: u64 = layout::MSIX_PBA as u64;
const NEEDS_RESET: u32 = 64;

/// What the test sees of its device.
#[derive(Default)]
struct Log {
    activations: AtomicUsize,
    /// Handlers alive.
    handlers: AtomicUsize,
    hold: AtomicBool,
    refuse: AtomicBool,
}

/// A device with two queues whose handlers give each chain back, unless told to hold it until they
/// are drained.
struct Echo(Arc<Log>);

impl VirtioDevice for Echo {
    fn info(&self) -> &'static DeviceInfo {
        &crate::virtio::block::INFO
    }
    fn name(&self) -> &str {
        "echo"
    }
    fn features(&self) -> u64 {
        0b1010
    }
    fn queue_sizes(&self) -> &[u16] {
        &[SIZE, SIZE]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill((offset as u8).wrapping_add(1));
    }
    fn activate(
        &mut self,
        activation: Activation,
    ) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        self.0.activations.fetch_add(1, Ordering::SeqCst);
        if self.0.refuse.load(Ordering::SeqCst) {
            return Err(ActivateError {
                name: "echo".into(),
                source: "told to".into(),
            });
        }
        let handler = |queue| {
            self.0.handlers.fetch_add(1, Ordering::SeqCst);
            let (held, log) = (Vec::new(), self.0.clone());
            Box::new(EchoHandler { queue, held, log }) as Box<dyn QueueHandler>
        };
        Ok(activation.queues.into_iter().map(handler).collect())
    }
    fn save(&self) -> Result<Saved, SaveError> {
        Saved::new(&EchoState {})
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        saved.state().map(|EchoState {}| ())
    }
    fn stats(&self) -> Value {
        Value::Null
    }
    fn command(&mut self, command: Value) -> Result<CommandEffect, CommandError> {
        let config_changed = serde_json::from_value(command)?;
        Ok(CommandEffect { config_changed })
    }
}

#[derive(Serialize, Deserialize)]
struct EchoState {}

impl State for EchoState {
    const KIND: &'static str = "echo";
    const VERSION: u32 = 1;
}

struct EchoHandler {
    queue: VirtQueue,
    held: Vec<u16>,
    log: Arc<Log>,
}

impl Drop for EchoHandler {
    fn drop(&mut self) {
        self.log.handlers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl QueueHandler for EchoHandler {
    fn queues(&self) -> &[VirtQueue] {
        std::slice::from_ref(&self.queue)
    }
    fn kicked(&mut self, _position: usize) -> Result<(), QueueError> {
        let mut chain = self.queue.new_chain();
        while self.queue.next(&mut chain)? {
            match self.log.hold.load(Ordering::SeqCst) {
                true => self.held.push(chain.head()),
                false => self.queue.complete(chain.head(), 1),
            }
        }
        self.queue.notify();
        Ok(())
    }
    fn drain(&mut self) {
        self.held
            .drain(..)
            .for_each(|head| self.queue.complete(head, 2));
        self.queue.notify();
    }
}

/// A guest with one function.
struct Guest {
    function: VirtioPciFunction,
    bars: Arc<BarAddresses>,
    log: Arc<Log>,
    router: Arc<FakeRouter>,
    doorbells: Arc<FakeDoorbells>,
    memory: Arc<GuestMemory>,
}

impl Guest {
    fn new() -> Self {
        Self::over(guest_memory(&[(0, 0x10_0000)]))
    }

    fn over(memory: Arc<GuestMemory>) -> Self {
        let log = Arc::new(Log::default());
        let router = Arc::new(FakeRouter::default());
        let doorbells = Arc::new(FakeDoorbells::default());
        let context = VirtioPciContext {
            mem: memory.clone(),
            router: router.clone(),
            doorbells: doorbells.clone(),
            thread_hook: Arc::new(|_| Ok(())),
            executor: Arc::new(InlineExecutor),
        };
        let mut function =
            VirtioPciFunction::new(Box::new(Echo(log.clone())), context).expect("good device");
        let bars = Arc::default();
        function.assign_bar(0, BAR, &bars);
        Self {
            function,
            bars,
            log,
            router,
            doorbells,
            memory,
        }
    }

    fn config(&mut self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.function.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set_config(&mut self, offset: u16, value: u32) {
        self.function.config_write(offset, &value.to_le_bytes());
    }

    fn read(&mut self, offset: u64, len: usize) -> u32 {
        let mut data = [0; 4];
        self.function.bar_read(0, offset, &mut data[..len]);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, len: usize, value: u32) {
        self.function
            .bar_write(0, offset, &value.to_le_bytes()[..len]);
    }

    fn status(&mut self) -> u32 {
        self.read(0x14, 1)
    }

    fn set_status(&mut self, status: u32) {
        self.write(0x14, 1, status);
    }

    /// Memory decoding and MSI-X on; all vectors unmasked, with data `0x40 + vector`.
    fn enable_interrupts(&mut self) {
        self.set_config(0x04, 0x6);
        for vector in 0..3 {
            self.route(vector, 0xfee0_0000, 0x40 + vector as u32);
            self.mask(vector, false);
        }
        self.set_config(0x40, 0x8000_0000);
    }

    fn route(&mut self, vector: u64, address: u32, data: u32) {
        self.write(TABLE + 16 * vector, 4, address);
        self.write(TABLE + 16 * vector + 8, 4, data);
    }

    fn mask(&mut self, vector: u64, masked: bool) {
        self.write(TABLE + 16 * vector + 12, 4, masked.into());
    }

    fn negotiate(&mut self, features: u64) {
        self.set_status(0);
        self.set_status(1);
        self.set_status(3);
        for page in 0..2 {
            self.write(0x08, 4, page);
            self.write(0x0c, 4, (features >> (32 * page)) as u32);
        }
        self.set_status(0xb);
    }

    fn set_up_queue(&mut self, index: u16, queue: &GuestQueue) {
        let state = queue.setup().state;
        self.write(0x16, 2, index.into());
        self.write(0x18, 2, state.size.into());
        self.write(0x1a, 2, u32::from(index) + 1);
        for (at, address) in [
            (0x20, state.desc_table),
            (0x28, state.avail_ring),
            (0x30, state.used_ring),
        ] {
            self.write(at, 4, address as u32);
            self.write(at + 4, 4, (address >> 32) as u32);
        }
        self.write(0x1c, 2, 1);
    }

    /// A driver's whole start with both queues; queue `n` has vector `n + 1`.
    fn start(&mut self) -> [GuestQueue; 2] {
        self.negotiate(1 << 32);
        self.write(0x10, 2, 0);
        let queues = [0, 0x1_0000].map(|base| GuestQueue::new(&self.memory, base, SIZE));
        self.set_up_queue(0, &queues[0]);
        self.set_up_queue(1, &queues[1]);
        self.set_status(0xf);
        queues
    }

    fn kick(&self, queue: u64) {
        assert!(
            self.doorbells.ring(BAR + NOTIFY + 4 * queue),
            "doorbell is connected"
        );
    }
}

const CHAIN: &[Buffer] = &[Buffer {
    address: 0x8_0000,
    len: 16,
    writable: true,
}];
