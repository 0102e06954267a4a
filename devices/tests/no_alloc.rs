//! Serving requests does not allocate, from the kick to the interrupt.

mod counting;

use std::sync::Arc;

use devices::GuestMemory;
use devices::character::CharacterKind;
use devices::virtio::balloon::Balloon;
use devices::virtio::block::QUEUE_SIZE;
use devices::virtio::console::{ConsoleOptions, ConsoleSpec, PortOptions};
use devices::virtio::rng::Rng;
use devices::virtio::testing::{Buffer, FakeIrq, GuestQueue, block_spec, event_fd, guest_memory};
use devices::virtio::{Activation, QueueHandler, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

const DATA: u64 = 0x10_0000;
const HEADER: u64 = 0x8_0000;
const STATUS: u64 = 0x9_0000;
const BATCH: u64 = 32;

struct Fixture {
    memory: Arc<GuestMemory>,
    guest: GuestQueue,
    handler: Box<dyn QueueHandler>,
    irq: Arc<FakeIrq>,
}

fn fixture(device: &mut dyn VirtioDevice, size: u16) -> Fixture {
    let memory = guest_memory(&[(0, 0x40_0000)]);
    let guest = GuestQueue::new(&memory, 0, size).with_event_idx();
    let irq = Arc::new(FakeIrq::default());
    let queue = guest.device_side(0, Arc::new(event_fd()), irq.clone());
    let activation = Activation {
        features: device.features(),
        queues: vec![queue],
        resumed: false,
        config_irq: Arc::new(FakeIrq::default()),
    };
    let handler = device
        .activate(activation)
        .expect("activates")
        .pop()
        .expect("one queue");
    Fixture {
        memory,
        guest,
        handler,
        irq,
    }
}

impl Fixture {
    /// Serves what `add` offers and returns the number of allocations that took.
    fn allocations(&mut self, add: impl Fn(&mut GuestQueue)) -> usize {
        let before = counting::allocations();
        add(&mut self.guest);
        for _ in 0..BATCH / 16 {
            self.handler.kicked(0).expect("good queue");
        }
        self.handler.readable(0).expect("good queue");
        self.handler.drain();
        for _ in 0..BATCH {
            assert!(self.guest.pop_used().is_some());
        }
        self.guest.set_used_event(self.guest.used_idx());
        counting::allocations() - before
    }
}

#[test]
fn counting_works() {
    let before = counting::allocations();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(counting::allocations(), before + 1);
}

fn check_block(sync: bool) {
    let image = tempfile::tempfile().expect("temporary file");
    image.set_len(1 << 20).expect("set size");
    let spec = block_spec(image, 1);
    let mut block = spec.build().expect("good spec");
    if sync {
        block.force_sync();
    }
    let mut f = fixture(&mut block, QUEUE_SIZE);
    // A quarter each of reads, writes, flushes and questions for the name.
    for i in 0..BATCH {
        let kind = [0u32, 1, 4, 8][i as usize % 4];
        let header = u128::from(kind) | u128::from(8 * i) << 64;
        let at = GuestAddress(HEADER + 16 * i);
        f.memory.write_obj(header, at).expect("in memory");
    }
    for round in 0..20 {
        let allocations = f.allocations(|guest| {
            for i in 0..BATCH {
                let header = Buffer::readable(HEADER + 16 * i, 16);
                let status = Buffer::writable(STATUS + i, 1);
                let data = |len| Buffer::writable(DATA + 4096 * i, len);
                match i % 4 {
                    0 => guest.add(&[header, data(1024), data(3072), status]),
                    1 => guest.add(&[header, Buffer::readable(DATA + 4096 * i, 4096), status]),
                    2 => guest.add(&[header, status]),
                    _ => guest.add(&[header, data(20), status]),
                };
            }
        });
        assert_eq!(allocations, 0, "round {round}");
    }
    let mut statuses = [0xff; BATCH as usize];
    f.memory
        .read_slice(&mut statuses, GuestAddress(STATUS))
        .expect("in memory");
    assert_eq!(statuses, [0; BATCH as usize]);
    assert!(f.irq.count() > 0);
}

#[test]
fn block_with_io_uring() {
    check_block(false);
}

#[test]
fn block_without_io_uring() {
    check_block(true);
}

#[test]
fn rng() {
    let mut f = fixture(&mut Rng::new("rng"), 64);
    for round in 0..20 {
        let allocations = f.allocations(|guest| {
            for i in 0..BATCH {
                guest.add(&[Buffer::writable(DATA + 64 * i, 64)]);
            }
        });
        assert_eq!(allocations, 0, "round {round}");
    }
}

#[test]
fn balloon() {
    let mut f = fixture(&mut Balloon::new("balloon").expect("eventfd"), 64);
    for page in 0..BATCH as u32 {
        let at = GuestAddress(HEADER + 4 * u64::from(page));
        let number = DATA as u32 / 4096 + page;
        f.memory.write_obj(number, at).expect("in memory");
    }
    for round in 0..20 {
        let allocations = f.allocations(|guest| {
            for _ in 0..BATCH {
                guest.add(&[Buffer::readable(HEADER, 4 * BATCH as u32)]);
            }
        });
        assert_eq!(allocations, 0, "round {round}");
    }
}

#[test]
fn console() {
    let output = tempfile::tempfile().expect("temporary file");
    let options = ConsoleOptions {
        ports: vec![PortOptions {
            id: 0,
            console: true,
            name: None,
            backend: CharacterKind::File,
        }],
    };
    let spec = ConsoleSpec::new("console".to_owned(), options, vec![output.into()]);
    let mut device = spec.expect("a good spec").build();
    let memory = guest_memory(&[(0, 0x40_0000)]);
    let mut guest = GuestQueue::new(&memory, 0, 64).with_event_idx();
    let irq = Arc::new(FakeIrq::default());
    let activation = Activation {
        features: device.features(),
        queues: vec![guest.device_side(1, Arc::new(event_fd()), irq.clone())],
        resumed: false,
        config_irq: irq,
    };
    let handlers = device.activate(activation).expect("activates");
    let mut handler = handlers.into_iter().next().expect("one handler");
    for round in 0..20 {
        let before = counting::allocations();
        for i in 0..BATCH {
            guest.add(&[Buffer::readable(DATA + 64 * i, 64)]);
        }
        handler.kicked(0).expect("good queue");
        for _ in 0..BATCH {
            assert!(guest.pop_used().is_some());
        }
        assert_eq!(counting::allocations() - before, 0, "round {round}");
    }
}
