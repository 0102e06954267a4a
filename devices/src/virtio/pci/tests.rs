use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::thread::ThreadRole;
use crate::virtio::queue::VirtQueue;
use crate::virtio::testing::{
    Buffer, F_INDIRECT, FakeDoorbells, FakeRouter, GuestQueue, guest_memory, wait_for,
};
use crate::virtio::{ActivateError, Activation, DeviceType, QueueError, QueueHandler};

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
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
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
    fn stats(&self) -> DeviceStats {
        DeviceStats::None
    }
    fn set_link(&mut self, up: bool) -> bool {
        up
    }
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
    fn role(&self) -> ThreadRole {
        ThreadRole::Device
    }
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
    log: Arc<Log>,
    router: Arc<FakeRouter>,
    doorbells: Arc<FakeDoorbells>,
    memory: Arc<GuestMemory>,
}

impl Guest {
    fn new() -> Self {
        let log = Arc::new(Log::default());
        let router = Arc::new(FakeRouter::default());
        let doorbells = Arc::new(FakeDoorbells::default());
        let memory = guest_memory(&[(0, 0x10_0000)]);
        let context = VirtioPciContext {
            mem: memory.clone(),
            router: router.clone(),
            doorbells: doorbells.clone(),
            thread_hook: Arc::new(|_| Ok(())),
        };
        let mut function =
            VirtioPciFunction::new(Box::new(Echo(log.clone())), context).expect("good device");
        function.assign_bar(BAR);
        Self {
            function,
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
        self.function.bar_read(offset, &mut data[..len]);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, len: usize, value: u32) {
        self.function.bar_write(offset, &value.to_le_bytes()[..len]);
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
        let layout = queue.layout();
        self.write(0x16, 2, index.into());
        self.write(0x18, 2, layout.size.into());
        self.write(0x1a, 2, u32::from(index) + 1);
        for (at, address) in [
            (0x20, layout.descriptors),
            (0x28, layout.avail),
            (0x30, layout.used),
        ] {
            self.write(at, 4, address.0 as u32);
            self.write(at + 4, 4, (address.0 >> 32) as u32);
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

#[test]
fn the_header_says_what_it_is() {
    let mut guest = Guest::new();
    assert_eq!(guest.config(0x00), 0x1042_1af4);
    assert_eq!(guest.config(0x04), 0x0010_0000);
    assert_eq!(guest.config(0x08), 0x0180_0001);
    assert_eq!(guest.config(0x2c), 0x1100_1af4);
    assert_eq!(guest.config(0x3c) & 0xff00, 0, "no interrupt pin");
    assert_eq!(guest.config(0x100), 0);
    guest.set_config(0x00, 0);
    guest.set_config(0x08, 0);
    guest.set_config(0x34, 0);
    guest.set_config(0xffc, 1);
    assert_eq!(guest.config(0x00), 0x1042_1af4);
    assert_eq!(guest.config(0x08), 0x0180_0001);
    let mut at = (guest.config(0x34) & 0xff) as u16;
    let mut seen = Vec::new();
    while at != 0 {
        let head = guest.config(at);
        seen.push((
            head & 0xff,
            if head & 0xff == 9 {
                head >> 24
            } else {
                head >> 16
            },
        ));
        at = (head >> 8 & 0xff) as u16;
    }
    assert_eq!(seen, [(0x11, 2), (9, 1), (9, 3), (9, 4), (9, 2), (9, 5)]);
}

#[test]
fn the_bar_is_sized_and_moves() {
    let mut guest = Guest::new();
    let bar = guest.function.bar_address();
    assert_eq!(bar.get(), None, "decoding is off at first");
    guest.set_config(0x10, 0xffff_ffff);
    guest.set_config(0x14, 0xffff_ffff);
    assert_eq!(guest.config(0x10), 0xffff_8004);
    assert_eq!(guest.config(0x14), 0xffff_ffff);
    guest.set_config(0x04, 2);
    assert_eq!(bar.get(), None, "not at the sizing pattern");
    guest.set_config(0x10, 0xc000_1234);
    guest.set_config(0x14, 1);
    assert_eq!(bar.get(), Some(0x1_c000_0000));
    for other in [0x18, 0x1c, 0x20, 0x24, 0x30] {
        guest.set_config(other, 0xffff_ffff);
        assert_eq!(guest.config(other), 0);
    }
    guest.set_config(0x04, 0);
    assert_eq!(bar.get(), None);
}

#[test]
fn doorbells_follow_the_bar() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    assert!(
        guest.doorbells.addresses().is_empty(),
        "not before DRIVER_OK"
    );
    guest.start();
    let at = |base: u64| vec![base + NOTIFY, base + NOTIFY + 4];
    assert_eq!(guest.doorbells.addresses(), at(BAR));
    guest.set_config(0x04, 0x4);
    assert!(guest.doorbells.addresses().is_empty());
    guest.set_config(0x10, 0xd000_0000);
    guest.set_config(0x04, 0x6);
    assert_eq!(guest.doorbells.addresses(), at(0x1_d000_0000));
    guest.set_config(0x14, 0x2);
    assert_eq!(guest.doorbells.addresses(), at(0x2_d000_0000));
    guest.set_status(0);
    assert!(guest.doorbells.addresses().is_empty());
}

#[test]
fn negotiates_only_what_was_offered() {
    let mut guest = Guest::new();
    let mut offered = 0;
    for page in 0..4u32 {
        guest.write(0x00, 4, page);
        let half = u64::from(guest.read(0x04, 4));
        assert!(page < 2 || half == 0);
        offered |= half << (32 * (page % 2));
    }
    assert_eq!(offered, 1 << 32 | 1 << 29 | 1 << 28 | 0b1010);
    for (features, fine) in [
        (1 << 32, true),
        (1 << 32 | 0b1000, true),
        (0b1010, false),
        (1 << 32 | 1, false),
        (1 << 40 | 1 << 32, false),
    ] {
        guest.negotiate(features);
        assert_eq!(guest.status(), if fine { 0xb } else { 0x3 });
        // Too late to change.
        guest.write(0x08, 4, 0);
        guest.write(0x0c, 4, 0b10);
        if fine {
            assert_eq!(guest.read(0x0c, 4), features as u32);
        }
    }
    guest.set_status(0x7);
    assert_eq!(
        guest.log.activations.load(Ordering::SeqCst),
        0,
        "status bits never go away"
    );
    guest.set_status(0);
    guest.set_status(0x4);
    guest.set_status(0xc);
    assert_eq!(
        guest.status(),
        0,
        "no DRIVER_OK without DRIVER and FEATURES_OK"
    );
}

#[test]
fn queue_registers_take_only_what_is_allowed() {
    let mut guest = Guest::new();
    guest.write(0x1c, 2, 1);
    assert_eq!(guest.read(0x1c, 2), 0, "not before FEATURES_OK");
    guest.negotiate(1 << 32);
    assert_eq!(guest.read(0x12, 2), 2);
    for size in [0, 3, 16, 0xffff] {
        guest.write(0x18, 2, size);
        assert_eq!(guest.read(0x18, 2), u32::from(SIZE));
    }
    guest.write(0x18, 2, 4);
    assert_eq!(guest.read(0x18, 2), 4);
    guest.write(0x1a, 2, 2);
    assert_eq!(guest.read(0x1a, 2), 2);
    guest.write(0x1a, 2, 3);
    assert_eq!(guest.read(0x1a, 2), 0xffff, "no such vector");
    guest
        .function
        .bar_write(0x20, &0x1234_5678_9abc_def0u64.to_le_bytes());
    assert_eq!(
        (guest.read(0x20, 4), guest.read(0x24, 4)),
        (0x9abc_def0, 0x1234_5678)
    );
    guest.write(0x1c, 2, 1);
    guest.write(0x18, 2, 8);
    guest.write(0x20, 4, 0);
    guest.write(0x1c, 2, 0);
    assert_eq!(
        (guest.read(0x18, 2), guest.read(0x20, 4)),
        (4, 0x9abc_def0),
        "enabled"
    );
    assert_eq!(guest.read(0x1c, 2), 1);
    guest.write(0x16, 2, 2);
    assert_eq!(guest.read(0x18, 2), 0, "no such queue");
    for at in [0x18, 0x1a, 0x1c, 0x38, 0x3a] {
        guest.write(at, 2, 1);
    }
    assert_eq!(guest.read(0x3a, 2), 0);
}

#[test]
fn serves_kicks_by_doorbell_and_by_exit() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let mut queues = guest.start();
    assert_eq!(guest.status(), 0xf);
    let router = guest.router.clone();
    for (index, queue) in queues.iter_mut().enumerate() {
        let head = queue.add(CHAIN);
        guest.kick(index as u64);
        assert_eq!(queue.wait_used(), (head, 1));
        wait_for("the interrupt", || router.take(index as u32 + 1) > 0);
        let head = queue.add(CHAIN);
        guest.write(NOTIFY + 4 * index as u64, 2, index as u32);
        assert_eq!(queue.wait_used(), (head, 1));
    }
    guest.write(NOTIFY + 8, 2, 2);
    guest.write(NOTIFY + 0xffc, 4, 0);
}

#[test]
fn vectors_are_connected_late_and_mask() {
    let mut guest = Guest::new();
    guest.route(1, 0xfee0_0000, 0x41);
    guest.mask(1, false);
    assert_eq!(
        guest.router.connects.load(Ordering::SeqCst),
        0,
        "MSI-X is off"
    );
    guest.set_config(0x40, 0x8000_0000);
    assert_eq!(guest.router.connects.load(Ordering::SeqCst), 1);
    assert_eq!(
        guest.router.message(1).map(|message| message.data),
        Some(0x41)
    );
    let vectors = guest.function.msix.vectors();
    vectors[1].raise();
    assert_eq!(guest.router.take(1), 1);

    guest.mask(1, true);
    vectors[1].raise();
    vectors[1].raise();
    assert_eq!(guest.router.take(1), 0);
    assert_eq!(guest.read(PBA, 4), 0b10);
    guest.mask(1, false);
    assert_eq!((guest.router.take(1), guest.read(PBA, 4)), (1, 0));
    assert_eq!(
        guest.router.connects.load(Ordering::SeqCst),
        1,
        "the route was kept"
    );

    guest.set_config(0x40, 0xc000_0000);
    vectors[1].raise();
    assert_eq!(
        (guest.router.take(1), guest.read(PBA, 4)),
        (0, 0b10),
        "function mask"
    );
    guest.set_config(0x40, 0x8000_0000);
    assert_eq!((guest.router.take(1), guest.read(PBA, 4)), (1, 0));

    guest.mask(1, true);
    guest.route(1, 0xfee0_1000, 0x55);
    guest.mask(1, false);
    assert_eq!(
        guest.router.message(1).map(|message| message.address),
        Some(0xfee0_1000)
    );
    vectors[0].raise();
    assert_eq!(guest.read(PBA, 4), 1, "never unmasked");
    assert_eq!(guest.read(TABLE + 16 * 3, 4), 0);
    guest.write(TABLE + 16 * 3, 4, 1);
    guest.write(TABLE + 0xffc, 4, 1);
    guest.function.shutdown();
    assert_eq!(guest.router.message(1), None);
}

#[test]
fn masking_and_raising_together_lose_nothing() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let vectors = guest.function.msix.vectors();
    let raised = Arc::new(AtomicUsize::new(0));
    let counter = raised.clone();
    let thread = std::thread::spawn(move || {
        for _ in 0..20_000 {
            vectors[2].raise();
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    while raised.load(Ordering::SeqCst) < 20_000 {
        guest.mask(2, true);
        guest.mask(2, false);
    }
    thread.join().expect("no panic");
    let seen = guest.router.take(2);
    assert!(seen > 0 && seen <= 20_000, "{seen}");
    assert_eq!(guest.read(PBA, 4), 0);
}

#[test]
fn reset_waits_for_requests_in_flight_and_the_driver_starts_again() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    for round in 1..=3 {
        guest.log.hold.store(true, Ordering::SeqCst);
        let [mut queue, _] = guest.start();
        let head = queue.add(CHAIN);
        guest.kick(0);
        guest.set_status(0);
        assert_eq!(guest.status(), 0);
        assert_eq!(guest.log.handlers.load(Ordering::SeqCst), 0);
        // The worker may not have got as far as taking the chain.
        assert!(matches!(queue.pop_used(), None | Some((_, 2))));
        assert_eq!(guest.read(0x10, 2), 0xffff);
        guest.write(0x16, 2, 1);
        assert_eq!((guest.read(0x1a, 2), guest.read(0x1c, 2)), (0xffff, 0));
        assert_eq!(guest.read(PBA, 4), 0);

        guest.log.hold.store(false, Ordering::SeqCst);
        let [mut queue, _] = guest.start();
        assert_eq!(queue.add(CHAIN), head);
        guest.kick(0);
        assert_eq!(queue.wait_used(), (head, 1));
        assert_eq!(guest.log.activations.load(Ordering::SeqCst), 2 * round);
    }
}

#[test]
fn pause_holds_requests_back() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let [mut queue, _] = guest.start();
    guest.function.pause();
    queue.add(CHAIN);
    guest.kick(0);
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(queue.pop_used(), None);
    guest.function.resume();
    queue.wait_used();
    guest.function.shutdown();
    assert_eq!(guest.log.handlers.load(Ordering::SeqCst), 0);
}

#[test]
fn a_malformed_chain_needs_a_reset() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let [mut queue, mut other] = guest.start();
    queue.write_descriptor(0, 0, 3, F_INDIRECT, 0);
    queue.offer(0);
    guest.kick(0);
    let router = guest.router.clone();
    wait_for("the configuration interrupt", || router.take(0) > 0);
    assert_eq!(guest.status(), 0xf | NEEDS_RESET);
    // The other queue's worker goes on; a real driver resets.
    other.add(CHAIN);
    guest.kick(1);
    other.wait_used();
    let [mut queue, _] = guest.start();
    assert_eq!(guest.status(), 0xf);
    queue.add(CHAIN);
    guest.kick(0);
    queue.wait_used();
}

#[test]
fn failures_to_start_need_a_reset() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    guest.log.refuse.store(true, Ordering::SeqCst);
    guest.start();
    assert_eq!(guest.status(), 0xf | NEEDS_RESET);
    assert!(guest.router.take(0) > 0);
    assert!(guest.doorbells.addresses().is_empty());

    guest.log.refuse.store(false, Ordering::SeqCst);
    guest.negotiate(1 << 32);
    guest.write(0x16, 2, 0);
    guest.function.bar_write(0x20, &u64::MAX.to_le_bytes());
    guest.write(0x1c, 2, 1);
    guest.set_status(0xf);
    assert_eq!(guest.status(), 0xf | NEEDS_RESET, "a queue outside memory");
    guest.start();
    assert_eq!(guest.status(), 0xf);
}

#[test]
fn a_link_change_interrupts_a_live_driver() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let generation = guest.read(0x15, 1);
    guest.function.set_link(true);
    assert_eq!(guest.router.take(0), 0);
    guest.start();
    guest.function.set_link(false);
    assert_eq!(guest.router.take(0), 0, "the device saw no change");
    guest.function.set_link(true);
    assert_eq!(guest.router.take(0), 1);
    assert_eq!(guest.read(0x15, 1), generation + 2);
}

#[test]
fn without_msix_a_driver_can_poll_the_isr() {
    let mut guest = Guest::new();
    guest.negotiate(1 << 32);
    let mut queue = GuestQueue::new(&guest.memory, 0, SIZE);
    guest.set_up_queue(0, &queue);
    guest.write(0x1a, 2, 0xffff);
    guest.set_status(0xf);
    queue.add(CHAIN);
    guest.write(NOTIFY, 2, 0);
    queue.wait_used();
    wait_for("the ISR bit", || guest.read(0x1000, 1) == 1);
    assert_eq!(guest.read(0x1000, 1), 0, "reading clears it");
}

#[test]
fn the_configuration_window_reaches_the_bar() {
    let mut guest = Guest::new();
    let window = 0x90;
    guest.set_config(window + 8, 0x14);
    guest.set_config(window + 12, 1);
    guest.set_config(window + 16, 1);
    assert_eq!(guest.status(), 1);
    guest.set_config(window + 8, 0x2004);
    guest.set_config(window + 12, 4);
    assert_eq!(guest.config(window + 16), 0x0505_0505);
    for (bar, offset, len) in [
        (1, 0, 4),
        (0, 0x7fff, 4),
        (0, 2, 4),
        (0, u32::MAX, 1),
        (0, 0, 0),
    ] {
        guest.set_config(window + 4, bar);
        guest.set_config(window + 8, offset);
        guest.set_config(window + 12, len);
        guest.set_config(window + 16, 0xffff_ffff);
        guest.config(window + 16);
    }
}

#[test]
fn no_access_anywhere_does_harm() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    guest.start();
    for len in [1, 2, 4, 8] {
        for offset in (0..layout::BAR_SIZE - 8).step_by(if len == 8 { 8 } else { len }) {
            let mut data = [0xff; 8];
            guest.function.bar_read(offset, &mut data[..len]);
            guest.function.bar_write(offset, &[0xff; 8][..len]);
            guest.function.bar_write(offset, &[0; 8][..len]);
        }
    }
    for offset in 0..crate::pci::CONFIG_SPACE_SIZE {
        guest.function.config_write(offset, &[0xff]);
        guest.function.config_write(offset, &[0]);
    }
}

#[test]
fn impossible_devices_are_refused() {
    struct Odd(Vec<u16>);
    impl VirtioDevice for Odd {
        fn device_type(&self) -> DeviceType {
            DeviceType::Net
        }
        fn name(&self) -> &str {
            "odd"
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> &[u16] {
            &self.0
        }
        fn read_config(&self, _: u64, _: &mut [u8]) {}
        fn activate(&mut self, _: Activation) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
            Ok(Vec::new())
        }
        fn stats(&self) -> DeviceStats {
            DeviceStats::None
        }
    }
    let context = Guest::new().function.context.clone();
    let make = |sizes| VirtioPciFunction::new(Box::new(Odd(sizes)), context.clone());
    assert!(matches!(
        make(vec![]),
        Err(CreateFunctionError::Queues { .. })
    ));
    assert!(matches!(
        make(vec![1; 256]),
        Err(CreateFunctionError::Queues { .. })
    ));
    assert!(matches!(
        make(vec![6]),
        Err(CreateFunctionError::QueueSize { index: 0, .. })
    ));
    assert!(make(vec![1; 255]).is_ok());
}
