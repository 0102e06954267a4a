//! A driver of any virtio device behind the PCI transport, whose device can be taken away and replaced
//! by one that was restored.

use std::sync::Arc;

use super::{
    Buffer, FakeDoorbells, FakeRouter, GuestQueue, InlineExecutor, guest_memory, wait_for,
};
use crate::GuestMemory;
use crate::pci::PciFunction;
use crate::state::{RestoreError, Saved};
use crate::virtio::VirtioDevice;
use crate::virtio::pci::{VirtioPciContext, VirtioPciFunction};

/// Bytes of guest memory.
pub const MEMORY: usize = 8 << 20;
/// The first address that queues do not use.
pub const HEAP: u64 = 4 << 20;

const BAR: u64 = 0x1_0000_0000;
/// Structures in the BAR, and registers in the first of them (virtio 1.2, 4.1.4.3).
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const FEATURE_SELECT: u64 = 0x08;
const FEATURE: u64 = 0x0c;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_ADDRESSES: u64 = 0x20;
const VERSION_1: u64 = 1 << 32;

/// The driver.
pub struct Driven {
    /// The device as the guest's processors see it.
    pub function: VirtioPciFunction,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// Interrupts: vector `n + 1` is queue `n`'s.
    pub router: Arc<FakeRouter>,
    /// All queues of the device, enabled.
    pub queues: Vec<GuestQueue>,
    sizes: Vec<u16>,
    features: u64,
    make: Box<dyn Fn() -> Box<dyn VirtioDevice>>,
}

impl Driven {
    /// Drives what `make` makes, with as many of `features` as it offers.
    pub fn new(make: impl Fn() -> Box<dyn VirtioDevice> + 'static, features: u64) -> Self {
        Self::over(guest_memory(&[(0, MEMORY)]), make, features)
    }

    /// The same over `memory`, which has room for the queues from address 0.
    pub fn over(
        memory: Arc<GuestMemory>,
        make: impl Fn() -> Box<dyn VirtioDevice> + 'static,
        features: u64,
    ) -> Self {
        let (router, device) = (Arc::default(), make());
        let mut driven = Self {
            sizes: device.queue_sizes().to_vec(),
            features: features & device.features() | VERSION_1,
            function: function(device, &memory, &router),
            memory,
            router,
            queues: Vec::new(),
            make: Box::new(make),
        };
        driven.start();
        driven
    }

    /// A driver's whole start, whatever another did to the device before.
    pub fn start(&mut self) {
        self.write(STATUS, &[0]);
        let mut base = 0;
        let queues = self.sizes.iter().map(|&size| {
            let queue = GuestQueue::new(&self.memory, base, size);
            base += GuestQueue::bytes(size);
            queue
        });
        self.queues = queues.collect();
        assert!(base <= HEAP, "queues fit");
        self.function.config_write(0x04, &[6, 0]);
        for vector in 0..=self.queues.len() as u64 {
            self.write(TABLE + 16 * vector, &0xfee0_0000u64.to_le_bytes());
            self.write(TABLE + 16 * vector + 8, &(vector as u32).to_le_bytes());
            self.write(TABLE + 16 * vector + 12, &0u32.to_le_bytes());
        }
        self.function.config_write(0x42, &0x8000u16.to_le_bytes());
        self.write(STATUS, &[3]);
        for page in 0..2u32 {
            self.write(FEATURE_SELECT, &page.to_le_bytes());
            let half = (self.features >> (32 * page)) as u32;
            self.write(FEATURE, &half.to_le_bytes());
        }
        self.write(STATUS, &[0xb]);
        for index in 0..self.queues.len() as u16 {
            self.set_up_queue(index);
        }
        self.write(STATUS, &[0xf]);
        assert_eq!(self.status(), 0xf);
    }

    fn set_up_queue(&mut self, index: u16) {
        let state = self.queues[usize::from(index)].setup().state;
        self.write(QUEUE_SELECT, &index.to_le_bytes());
        self.write(QUEUE_VECTOR, &(index + 1).to_le_bytes());
        let addresses = [state.desc_table, state.avail_ring, state.used_ring];
        for (at, address) in (QUEUE_ADDRESSES..).step_by(8).zip(addresses) {
            self.write(at, &address.to_le_bytes());
        }
        self.write(QUEUE_ENABLE, &[1, 0]);
    }

    /// Writes to the BAR.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.function.bar_write(0, offset, data);
    }

    /// Device status.
    pub fn status(&mut self) -> u8 {
        let mut status = [0];
        self.function.bar_read(0, STATUS, &mut status);
        status[0]
    }

    /// Offers a chain and rings the doorbell.
    pub fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let head = self.queues[queue].add(buffers);
        self.write(NOTIFY + 4 * queue as u64, &(queue as u16).to_le_bytes());
        head
    }

    /// Waits for a chain to come back, and for the interrupt that says so; the bytes written.
    pub fn wait(&mut self, queue: usize, head: u16) -> u32 {
        let (used, written) = self.queues[queue].wait_used();
        assert_eq!(used, head);
        let router = Arc::clone(&self.router);
        wait_for("the interrupt", || router.take(queue as u32 + 1) > 0);
        written
    }

    /// [`Driven::offer`] and [`Driven::wait`].
    pub fn serve(&mut self, queue: usize, buffers: &[Buffer]) -> u32 {
        let head = self.offer(queue, buffers);
        self.wait(queue, head)
    }

    /// Puts a new device in the place of the one there is, over the same memory.
    pub fn replace(&mut self) {
        self.function.pause();
        let saved = self.function.save().expect("paused");
        let text = serde_json::to_string(&saved).expect("plain data");
        self.function.shutdown();
        let saved = serde_json::from_str(&text).expect("as it was written");
        self.restore(&saved).expect("of the same device");
    }

    /// Puts a new device with the state `saved` in the place of the one there is.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        self.router = Arc::default();
        self.function = function((self.make)(), &self.memory, &self.router);
        self.function.restore(saved)?;
        self.function.resume();
        Ok(())
    }
}

fn function(
    device: Box<dyn VirtioDevice>,
    memory: &Arc<GuestMemory>,
    router: &Arc<FakeRouter>,
) -> VirtioPciFunction {
    let context = VirtioPciContext {
        mem: Arc::clone(memory),
        router: Arc::clone(router) as _,
        doorbells: Arc::new(FakeDoorbells::default()),
        thread_hook: Arc::new(|_| Ok(())),
        executor: Arc::new(InlineExecutor),
    };
    let mut function = VirtioPciFunction::new(device, context).expect("a good device");
    function.assign_bar(0, BAR, &Arc::default());
    function
}
