use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::GuestMemory;
use crate::state::conformance::{Script, goes_on_after_restore};
use crate::virtio::testing::driven::{Driven, HEAP};
use crate::virtio::testing::{Buffer, F_INDIRECT, FakeIrq, GuestQueue, event_fd, guest_memory};

const DATA: u64 = 0x10_0000;
const MEMORY: usize = 0x40_0000;

struct Fixture {
    memory: Arc<GuestMemory>,
    guest: GuestQueue,
    handler: RngHandler,
    irq: Arc<FakeIrq>,
}

fn fixture() -> Fixture {
    let memory = guest_memory(&[(0, MEMORY)]);
    let guest = GuestQueue::new(&memory, 0, QUEUE_SIZE);
    let irq = Arc::new(FakeIrq::default());
    let handler = RngHandler::new(guest.device_side(0, Arc::new(event_fd()), irq.clone()));
    Fixture {
        memory,
        guest,
        handler,
        irq,
    }
}

#[test]
fn fills_what_the_driver_offers_and_no_more() {
    let mut f = fixture();
    let head = f
        .guest
        .add(&[Buffer::writable(DATA, 64), Buffer::writable(DATA + 100, 64)]);
    f.handler.kicked(0).expect("good queue");
    assert_eq!(f.guest.pop_used(), Some((head, 128)));
    assert_eq!(f.irq.count(), 1);
    let mut bytes = [0; 256];
    f.memory
        .read_slice(&mut bytes, GuestAddress(DATA))
        .expect("in memory");
    assert!(bytes[..64].iter().any(|&byte| byte != 0));
    assert!(bytes[100..164].iter().any(|&byte| byte != 0));
    assert!(
        bytes[64..100]
            .iter()
            .chain(&bytes[164..])
            .all(|&byte| byte == 0)
    );
}

#[test]
fn bounds_a_request() {
    let mut f = fixture();
    let head = f.guest.add(&[Buffer::writable(DATA, 0x20_0000)]);
    f.handler.kicked(0).expect("good queue");
    assert_eq!(f.guest.pop_used(), Some((head, MAX_BYTES)));
}

#[test]
fn gives_back_chains_without_a_writable_buffer() {
    let mut f = fixture();
    let head = f.guest.add(&[Buffer::readable(DATA, 64)]);
    f.handler.kicked(0).expect("good queue");
    assert_eq!(f.guest.pop_used(), Some((head, 0)));
}

#[test]
fn asks_for_a_reset_on_malformed_chains() {
    let mut f = fixture();
    f.guest.write_descriptor(0, DATA, 17, F_INDIRECT, 0);
    f.guest.offer(0);
    assert!(matches!(
        f.handler.kicked(0),
        Err(QueueError::Malformed { .. })
    ));

    let mut f = fixture();
    f.guest.set_avail_idx(QUEUE_SIZE + 1);
    assert!(matches!(
        f.handler.kicked(0),
        Err(QueueError::AvailIndex { .. })
    ));
}

#[test]
fn comes_back_later_for_a_long_queue() {
    let mut f = fixture();
    for _ in 0..QUEUE_SIZE {
        f.guest.add(&[Buffer::writable(DATA, 1)]);
    }
    f.handler.kicked(0).expect("good queue");
    assert_eq!(f.handler.queue.kick().read().ok(), Some(1));
    f.handler.kicked(0).expect("good queue");
    assert!(f.handler.queue.kick().read().is_err());
    assert_eq!(f.guest.used_idx(), QUEUE_SIZE);
}

/// A guest that asks for bytes now and then.
struct Asker(Driven);

impl Script for Asker {
    /// Bytes given; bytes left alone beside them.
    type Seen = (u32, bool);
    const STEPS: usize = 8;

    fn new() -> Option<Self> {
        Some(Self(Driven::new(|| Box::new(Rng::new("rng")), 0)))
    }

    fn step(&mut self, step: usize) -> Self::Seen {
        let at = HEAP + 256 * step as u64;
        let len = 8 * (step as u32 + 1);
        let written = self.0.serve(0, &[Buffer::writable(at, len)]);
        let mut bytes = [0; 256];
        let memory = &self.0.memory;
        memory
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("in memory");
        let (given, rest) = bytes.split_at(len as usize);
        assert!(given.iter().any(|&byte| byte != 0));
        (written, rest.iter().all(|&byte| byte == 0))
    }

    fn replace(&mut self) {
        self.0.replace();
    }
}

goes_on_after_restore!(goes_on_where_another_source_stopped, Asker);
