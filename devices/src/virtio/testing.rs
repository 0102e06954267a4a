//! The guest side of devices, for tests and benches: writes rings, counts interrupts, records what
//! a device connects.
//!
//! Panics where a device must not: a test that lays out its memory wrongly has to fail.

pub mod driven;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::GuestMemory;
use crate::irq::{Doorbells, Irq, MsiMessage, MsiRouter};
use crate::thread::Executor;
use crate::virtio::block::{BlockOptions, BlockSpec, CacheMode, ErrorPolicy, Rings};
use crate::virtio::queue::{QueueSetup, QueueState, VirtQueue};

/// `VIRTQ_DESC_F_NEXT`.
pub const F_NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const F_WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub const F_INDIRECT: u16 = 4;

/// How long [`GuestQueue::wait_used`] waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Guest memory of `(base, size)` regions.
pub fn guest_memory(regions: &[(u64, usize)]) -> Arc<GuestMemory> {
    let regions: Vec<_> = regions
        .iter()
        .map(|&(base, size)| (GuestAddress(base), size))
        .collect();
    Arc::new(GuestMemory::from_ranges(&regions).expect("test memory"))
}

/// A writable disk on `image` with ordinary blocks and discard.
pub fn block_spec(image: File, queues: u16) -> BlockSpec {
    BlockSpec {
        name: "root".into(),
        file: image,
        backing: Vec::new(),
        lost: Arc::default(),
        rings: Arc::new(Rings::take(queues.into())),
        options: BlockOptions {
            cache: CacheMode::Writeback,
            error_policy: ErrorPolicy::Report,
            queues,
            ..BlockOptions::default()
        },
    }
}

/// A new eventfd as devices use them.
pub fn event_fd() -> EventFd {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("eventfd")
}

/// A descriptor of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Device-writable.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn readable(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            writable: false,
        }
    }

    /// A buffer that the device writes.
    pub fn writable(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            writable: true,
        }
    }
}

/// The driver's view of a split virtqueue. Does not allocate after [`GuestQueue::new`].
pub struct GuestQueue {
    memory: Arc<GuestMemory>,
    setup: QueueSetup,
    next_descriptor: u16,
    avail_idx: u16,
    used_seen: u16,
}

impl GuestQueue {
    /// Bytes that a queue of `size` entries takes.
    pub fn bytes(size: u16) -> u64 {
        let (used, len) = (used_offset(size), 6 + 8 * u64::from(size));
        (used + len).next_multiple_of(4096)
    }

    /// An empty queue with its three parts one after the other from `base`, which is page-aligned.
    pub fn new(memory: &Arc<GuestMemory>, base: u64, size: u16) -> Self {
        let zeros = vec![0; Self::bytes(size) as usize];
        memory
            .write_slice(&zeros, GuestAddress(base))
            .expect("queue is in guest memory");
        let state = QueueState {
            max_size: size,
            size,
            ready: true,
            desc_table: base,
            avail_ring: base + 16 * u64::from(size),
            used_ring: base + used_offset(size),
            ..QueueState::default()
        };
        let indirect = true;
        Self {
            memory: Arc::clone(memory),
            setup: QueueSetup { state, indirect },
            next_descriptor: 0,
            avail_idx: 0,
            used_seen: 0,
        }
    }

    /// As [`GuestQueue::new`], with `VIRTIO_F_EVENT_IDX`.
    pub fn with_event_idx(mut self) -> Self {
        self.setup.state.event_idx_enabled = true;
        self
    }

    /// What the device side is told at the start.
    pub fn setup(&self) -> &QueueSetup {
        &self.setup
    }

    /// The device side of this queue.
    pub fn device_side(&self, index: u16, kick: Arc<EventFd>, irq: Arc<dyn Irq>) -> VirtQueue {
        VirtQueue::new(index, &self.setup, Arc::clone(&self.memory), kick, irq)
            .expect("setup is valid")
    }

    /// Writes one descriptor of the table.
    pub fn write_descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.setup.state.desc_table + 16 * u64::from(index);
        write_descriptor(&self.memory, at, address, len, flags, next);
    }

    /// Adds a chain of direct descriptors and offers it. Returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (i, buffer) in buffers.iter().enumerate() {
            let index = self.take_descriptor();
            let more = if i + 1 < buffers.len() { F_NEXT } else { 0 };
            let write = if buffer.writable { F_WRITE } else { 0 };
            let next = self.next_descriptor;
            self.write_descriptor(index, buffer.address, buffer.len, more | write, next);
        }
        self.offer(head);
        head
    }

    /// Adds a chain that is an indirect table at `table` and offers it. Returns its head.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        for (i, buffer) in buffers.iter().enumerate() {
            let more = if i + 1 < buffers.len() { F_NEXT } else { 0 };
            let write = if buffer.writable { F_WRITE } else { 0 };
            let (at, next) = (table + 16 * i as u64, (i + 1) as u16);
            write_descriptor(
                &self.memory,
                at,
                buffer.address,
                buffer.len,
                more | write,
                next,
            );
        }
        let head = self.take_descriptor();
        self.write_descriptor(head, table, 16 * buffers.len() as u32, F_INDIRECT, 0);
        self.offer(head);
        head
    }

    fn take_descriptor(&mut self) -> u16 {
        let index = self.next_descriptor;
        self.next_descriptor = (index + 1) % self.setup.state.size;
        index
    }

    /// Puts `head` into the available ring and publishes it.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.setup.state.size);
        let at = GuestAddress(self.setup.state.avail_ring + 4 + 2 * slot);
        self.memory
            .write_obj(head, at)
            .expect("ring is in guest memory");
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    /// Publishes an available index, right or wrong.
    pub fn set_avail_idx(&mut self, index: u16) {
        self.avail_idx = index;
        let at = GuestAddress(self.setup.state.avail_ring + 2);
        self.memory
            .store(index, at, Ordering::Release)
            .expect("ring is in guest memory");
        fence(Ordering::SeqCst);
    }

    /// Sets `avail.flags`, where 1 asks for no interrupts.
    pub fn set_avail_flags(&self, flags: u16) {
        self.memory
            .write_obj(flags, GuestAddress(self.setup.state.avail_ring))
            .expect("ring is in guest memory");
    }

    /// Asks for an interrupt once the used index passes `index`.
    pub fn set_used_event(&self, index: u16) {
        let at = self.setup.state.avail_ring + 4 + 2 * u64::from(self.setup.state.size);
        self.memory
            .write_obj(index, GuestAddress(at))
            .expect("ring is in guest memory");
    }

    /// Whether the device wants a kick for the chain offered last.
    pub fn kick_wanted(&self) -> bool {
        if self.setup.state.event_idx_enabled {
            let at = self.setup.state.used_ring + 4 + 8 * u64::from(self.setup.state.size);
            let event: u16 = self.read(at);
            event == self.avail_idx.wrapping_sub(1)
        } else {
            self.read(self.setup.state.used_ring) & 1 == 0
        }
    }

    /// The device's used index.
    pub fn used_idx(&self) -> u16 {
        let at = GuestAddress(self.setup.state.used_ring + 2);
        self.memory
            .load(at, Ordering::Acquire)
            .expect("ring is in guest memory")
    }

    /// Takes the next used element: head and bytes written.
    pub fn pop_used(&mut self) -> Option<(u16, u32)> {
        if self.used_idx() == self.used_seen {
            return None;
        }
        let slot = u64::from(self.used_seen % self.setup.state.size);
        let at = GuestAddress(self.setup.state.used_ring + 4 + 8 * slot);
        let element: [u32; 2] = self.memory.read_obj(at).expect("ring is in guest memory");
        self.used_seen = self.used_seen.wrapping_add(1);
        Some((element[0] as u16, element[1]))
    }

    /// Waits for the next used element; panics after some seconds.
    pub fn wait_used(&mut self) -> (u16, u32) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(element) = self.pop_used() {
                return element;
            }
            assert!(Instant::now() < end, "no used buffer appeared");
            std::thread::yield_now();
        }
    }

    fn read(&self, at: u64) -> u16 {
        self.memory
            .read_obj(GuestAddress(at))
            .expect("ring is in guest memory")
    }
}

fn used_offset(size: u16) -> u64 {
    (16 * u64::from(size) + 6 + 2 * u64::from(size)).next_multiple_of(4096)
}

/// Writes a descriptor at guest physical address `at`.
pub fn write_descriptor(
    memory: &GuestMemory,
    at: u64,
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
) {
    let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    memory
        .write_obj([address, rest], GuestAddress(at))
        .expect("table is in guest memory");
}

/// Polls `condition`; panics after some seconds.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Counts interrupts.
#[derive(Debug, Default)]
pub struct FakeIrq(AtomicUsize);

impl FakeIrq {
    /// Interrupts so far.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Irq for FakeIrq {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// One connection recorded by [`FakeRouter`].
pub struct Route {
    /// Vector number.
    pub vector: u32,
    /// The message.
    pub message: MsiMessage,
    /// The device's eventfd.
    pub event: EventFd,
}

/// Records MSI routes.
#[derive(Default)]
pub struct FakeRouter {
    routes: Mutex<Vec<Route>>,
    next: AtomicUsize,
    /// Calls of `connect` so far.
    pub connects: AtomicUsize,
    /// Functions that have vectors.
    pub reserved: AtomicUsize,
}

impl FakeRouter {
    fn routes(&self) -> std::sync::MutexGuard<'_, Vec<Route>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The message of a connected vector.
    pub fn message(&self, vector: u32) -> Option<MsiMessage> {
        self.routes()
            .iter()
            .find(|route| route.vector == vector)
            .map(|route| route.message)
    }

    /// Interrupts of `vector` since the last call, zero if it is not connected.
    pub fn take(&self, vector: u32) -> u64 {
        let routes = self.routes();
        let route = routes.iter().find(|route| route.vector == vector);
        route.and_then(|route| route.event.read().ok()).unwrap_or(0)
    }
}

impl MsiRouter for FakeRouter {
    fn connect(&self, vector: u32, message: MsiMessage, event: &EventFd) -> io::Result<()> {
        let event = event.try_clone()?;
        let mut routes = self.routes();
        routes.retain(|route| route.vector != vector);
        routes.push(Route {
            vector,
            message,
            event,
        });
        self.connects.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn disconnect(&self, vector: u32, _event: &EventFd) -> io::Result<()> {
        self.routes().retain(|route| route.vector != vector);
        Ok(())
    }

    fn allocate(&self, count: u32) -> io::Result<u32> {
        self.reserved.fetch_add(1, Ordering::SeqCst);
        Ok(self.next.fetch_add(count as usize, Ordering::SeqCst) as u32)
    }

    fn release(&self, _first: u32) {
        self.reserved.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Records doorbells.
#[derive(Default)]
pub struct FakeDoorbells {
    bells: Mutex<Vec<(u64, EventFd)>>,
}

impl FakeDoorbells {
    fn bells(&self) -> std::sync::MutexGuard<'_, Vec<(u64, EventFd)>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Addresses connected now, in order.
    pub fn addresses(&self) -> Vec<u64> {
        let mut addresses: Vec<_> = self.bells().iter().map(|&(address, _)| address).collect();
        addresses.sort_unstable();
        addresses
    }

    /// What the kernel does at a guest write to `address`; false if nothing is there.
    pub fn ring(&self, address: u64) -> bool {
        let bells = self.bells();
        let bell = bells.iter().find(|&&(at, _)| at == address);
        bell.is_some_and(|(_, event)| event.write(1).is_ok())
    }
}

impl Doorbells for FakeDoorbells {
    fn connect(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let event = event.try_clone()?;
        self.bells().push((address, event));
        Ok(())
    }

    fn disconnect(&self, address: u64, _event: &EventFd) -> io::Result<()> {
        self.bells().retain(|&(at, _)| at != address);
        Ok(())
    }
}

/// Runs jobs where they are asked for.
pub struct InlineExecutor;

impl Executor for InlineExecutor {
    fn execute(&self, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}
