//! A balloon with a fake driver, on memory of which the kernel tells what is resident.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::GuestMemory;
use crate::state::conformance::{Script, goes_on_after_restore};
use crate::virtio::testing::driven::{Driven, HEAP};
use crate::virtio::testing::{Buffer, FakeIrq, GuestQueue, event_fd, guest_memory};

const RAM: usize = 8 << 20;
const DEFLATE: u16 = 1;
/// Page numbers and statistics are written here.
const LIST: u64 = 0x10_0000;
/// Pages that are given back.
const PAGES: u64 = 0x20_0000;

struct Fixture {
    memory: Arc<GuestMemory>,
    balloon: Balloon,
    handler: Box<dyn QueueHandler>,
    queues: Vec<GuestQueue>,
    irq: Arc<FakeIrq>,
}

impl Fixture {
    /// With the queues of these numbers.
    fn new(numbers: &[u16]) -> Self {
        let memory = guest_memory(&[(0, RAM), (0x1_0000_0000, 0x10_0000)]);
        let mut balloon = Balloon::new("balloon").expect("eventfd");
        let bytes = GuestQueue::bytes(QUEUE_SIZE);
        let queues: Vec<_> = (0..numbers.len() as u64)
            .map(|index| GuestQueue::new(&memory, index * bytes, QUEUE_SIZE))
            .collect();
        let irq = Arc::new(FakeIrq::default());
        let device_side = |(queue, number): (&GuestQueue, &u16)| {
            queue.device_side(*number, Arc::new(event_fd()), irq.clone())
        };
        let activation = Activation {
            features: balloon.features(),
            queues: queues.iter().zip(numbers).map(device_side).collect(),
            resumed: false,
            config_irq: irq.clone(),
        };
        let handlers = balloon.activate(activation);
        let handler = handlers.expect("activates").pop().expect("one handler");
        Self {
            memory,
            balloon,
            handler,
            queues,
            irq,
        }
    }

    fn list(&self, bytes: &[u8]) {
        let written = self.memory.write_slice(bytes, GuestAddress(LIST));
        written.expect("in memory");
    }

    /// Has the queue at `position` serve one chain.
    fn send(&mut self, position: usize, buffers: &[Buffer]) {
        let head = self.queues[position].add(buffers);
        self.handler.kicked(position).expect("the driver is right");
        assert_eq!(self.queues[position].pop_used(), Some((head, 0)));
    }

    fn inflate(&mut self, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        self.list(&bytes);
        self.send(0, &[Buffer::readable(LIST, bytes.len() as u32)]);
    }

    fn stats(&self) -> BalloonStats {
        serde_json::from_value(self.balloon.stats()).expect("a balloon")
    }

    /// Writes to `count` pages from [`PAGES`], and where lists are written.
    fn touch(&self, count: u64) {
        self.list(&[0]);
        for page in 0..count {
            let address = GuestAddress(PAGES + page * UNIT);
            self.memory.write_obj(0x55_u8, address).expect("in memory");
        }
    }

    fn resident(&self) -> usize {
        let region = self.memory.iter().next().expect("RAM");
        let mut pages = vec![0; RAM / UNIT as usize];
        // SAFETY: the region is mapped and there is a byte for each of its pages.
        let asked = unsafe { libc::mincore(region.as_ptr().cast(), RAM, pages.as_mut_ptr()) };
        assert_eq!(asked, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }
}

#[test]
fn pages_go_back_in_any_order_and_read_as_zero() {
    let first = (PAGES / UNIT) as u32;
    let orders: [Vec<u32>; 3] = [
        (first..first + 16).collect(),
        (first..first + 16).rev().collect(),
        (0..16).map(|page| first + page * 7 % 16).collect(),
    ];
    for order in orders {
        let mut f = Fixture::new(&[INFLATE, DEFLATE]);
        f.touch(32);
        let before = f.resident();
        f.inflate(&order);
        assert_eq!(before - f.resident(), 16, "{order:?}");
        assert_eq!(f.stats().inflated_bytes, 16 * UNIT);
        let read = |page| f.memory.read_obj::<u8>(GuestAddress(PAGES + page * UNIT));
        assert_eq!(read(15).expect("in memory"), 0);
        assert_eq!(read(16).expect("in memory"), 0x55);
        f.send(1, &[Buffer::readable(LIST, 64)]);
    }
}

#[test]
fn only_guest_ram_can_be_given_back() {
    let mut f = Fixture::new(&[INFLATE]);
    f.touch(4);
    let before = f.resident();
    let end = (RAM as u64 / UNIT) as u32;
    f.inflate(&[end, end + 1, u32::MAX, 0xf_ffff, 0x10_0100]);
    assert_eq!(f.resident(), before);
    let stats = f.stats();
    assert_eq!((stats.bad_pages, stats.inflated_bytes), (5, 0));
    f.inflate(&[end, (PAGES / UNIT) as u32, 0x10_00ff]);
    let stats = f.stats();
    assert_eq!((stats.bad_pages, stats.inflated_bytes), (6, 2 * UNIT));
    // A number that is cut off is none, and a chain without any is one, too.
    f.send(0, &[Buffer::readable(LIST, 3)]);
    f.send(0, &[Buffer::writable(LIST, 8)]);
    assert_eq!(f.stats(), stats);
}

#[test]
fn a_chain_of_more_pages_than_ever_needed_costs_no_more() {
    let mut f = Fixture::new(&[INFLATE]);
    let number = (7_u32 << 20) / UNIT as u32;
    let numbers = number.to_le_bytes().repeat(1 << 20);
    let written = f.memory.write_slice(&numbers, GuestAddress(PAGES));
    written.expect("in memory");
    f.send(0, &[Buffer::readable(PAGES, 4 << 20)]);
    assert!(f.stats().inflated_bytes <= MAX_PAGES as u64 * UNIT);
}

#[test]
fn reported_pages_go_back_whole_by_either_number() {
    for number in REPORTING {
        let mut f = Fixture::new(&[INFLATE, DEFLATE, number]);
        f.touch(32);
        let before = f.resident();
        let parts = [
            Buffer::writable(PAGES, 8 * UNIT as u32),
            // The ends are parts of pages that the guest still uses.
            Buffer::writable(PAGES + 10 * UNIT + 1, 3 * UNIT as u32),
        ];
        f.send(2, &parts);
        assert_eq!(before - f.resident(), 8 + 2);
        assert_eq!(f.stats().reported_bytes, 10 * UNIT);
    }
}

#[test]
fn statistics_are_what_the_guest_said_and_asking_makes_it_speak() {
    let mut f = Fixture::new(&[INFLATE, DEFLATE, STATS]);
    let entry = |tag: u16, value: u64| {
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.extend(value.to_le_bytes());
        bytes
    };
    let say = |f: &mut Fixture, free: u64| {
        let said = [entry(4, free), entry(0xffff, 1), entry(5, 1000)].concat();
        f.list(&said);
        let head = f.queues[2].add(&[Buffer::readable(LIST, said.len() as u32)]);
        f.handler.kicked(2).expect("the driver is right");
        head
    };
    let head = say(&mut f, 100);
    assert_eq!(f.queues[2].pop_used(), None, "kept until somebody asks");
    let stats = f.stats();
    let expected = [("freeMemory", 100), ("totalMemory", 1000)];
    let expected = expected.map(|(name, value)| (name.to_owned(), value));
    assert_eq!(stats.guest, expected.into());
    let interrupts = f.irq.count();
    f.handler.readable(0).expect("the driver is right");
    assert_eq!(f.queues[2].pop_used(), Some((head, 0)));
    assert!(f.irq.count() > interrupts);
    f.handler.readable(0).expect("nothing to give back");
    assert_eq!(f.queues[2].pop_used(), None);
    say(&mut f, 50);
    assert_eq!(f.stats().guest["freeMemory"], 50);
}

#[test]
fn the_target_is_told_by_the_configuration_and_the_guest_answers_there() {
    let mut balloon = Balloon::new("balloon").expect("eventfd");
    let mut order = |bytes: u64| {
        let order = serde_json::json!({"command": "inflate", "bytes": bytes});
        balloon.command(order).expect("understood").config_changed
    };
    assert!(order(10 * UNIT + 5));
    assert!(!order(10 * UNIT));
    let mut config = [0xff; 12];
    balloon.read_config(0, &mut config);
    assert_eq!(config, [10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    balloon.write_config(4, &7_u32.to_le_bytes());
    balloon.write_config(0, &9_u32.to_le_bytes());
    balloon.write_config(5, &[1]);
    balloon.read_config(0, &mut config);
    assert_eq!(config[..8], [10, 0, 0, 0, 7, 0, 0, 0]);
    let stats: BalloonStats = serde_json::from_value(balloon.stats()).expect("a balloon");
    assert_eq!(
        (stats.target_bytes, stats.actual_bytes),
        (10 * UNIT, 7 * UNIT)
    );
    balloon
        .command(serde_json::json!({"command": "setLink", "up": true}))
        .expect_err("no NIC");
    balloon.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 12]);
}

/// A guest that does without a page now and then.
struct Giver(Driven);

impl Script for Giver {
    /// Whether the page is gone; the configuration space.
    type Seen = (bool, [u8; 8]);
    const STEPS: usize = 6;

    fn new() -> Option<Self> {
        let make = || Box::new(Balloon::new("balloon").expect("eventfd")) as Box<dyn VirtioDevice>;
        Some(Self(Driven::new(make, u64::MAX)))
    }

    fn step(&mut self, step: usize) -> Self::Seen {
        let page = HEAP + UNIT * (step as u64 + 1);
        let memory = Arc::clone(&self.0.memory);
        memory
            .write_obj(0x55_u8, GuestAddress(page))
            .expect("in memory");
        let number = (page / UNIT) as u32;
        memory
            .write_obj(number, GuestAddress(HEAP))
            .expect("in memory");
        let order =
            serde_json::json!({"command": "inflate", "bytes": UNIT * (2 + step as u64 / 2)});
        self.0.function.command(order).expect("understood");
        self.0.serve(INFLATE.into(), &[Buffer::readable(HEAP, 4)]);
        self.0.write(0x2004, &(step as u32).to_le_bytes());
        let byte: u8 = memory.read_obj(GuestAddress(page)).expect("in memory");
        let mut config = [0; 8];
        crate::pci::PciFunction::bar_read(&mut self.0.function, 0, 0x2000, &mut config);
        (byte == 0, config)
    }

    fn replace(&mut self) {
        self.0.replace();
    }
}

goes_on_after_restore!(goes_on_where_another_balloon_stopped, Giver);
