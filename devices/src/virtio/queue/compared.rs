//! The same memory, driver and operations for `virtio_queue`, which others wrote: wherever both accept
//! what a driver does, both say and write the same.

use std::collections::VecDeque;

use libc::iovec;
use proptest::prelude::*;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::virtio::chain::ChainError;
use crate::virtio::testing::{
    Buffer, F_INDIRECT, FakeIrq, GuestQueue, event_fd, guest_memory, write_descriptor,
};

const SIZE: u16 = 8;
const MEMORY: u64 = 0x10_0000;
const DATA: u64 = 0x1_0000;
const TABLE: u64 = 0x8000;

/// A buffer by guest physical address, length and direction.
type Seen = (u64, usize, bool);

fn ours(memory: &GuestMemory, chain: &Chain) -> Vec<Seen> {
    let base = memory.get_host_address(GuestAddress(0)).expect("mapped");
    let seen = |writable| {
        move |buffer: &iovec| {
            let address = buffer.iov_base.addr() - base.addr();
            (address as u64, buffer.iov_len, writable)
        }
    };
    let readable = chain.readable().iter().map(seen(false));
    readable
        .chain(chain.writable().iter().map(seen(true)))
        .collect()
}

/// The buffers that the other side walks, and whether the chain has a last descriptor: it ends in
/// silence at what it does not like.
fn theirs(queue: &mut Queue, memory: &GuestMemory) -> (Vec<Seen>, bool) {
    let chain = queue.pop_descriptor_chain(memory).expect("a chain");
    let mut ended = false;
    let mut seen = Vec::new();
    for descriptor in chain {
        ended = !descriptor.has_next();
        if descriptor.len() > 0 {
            let (address, len) = (descriptor.addr().0, descriptor.len() as usize);
            seen.push((address, len, descriptor.is_write_only()));
        }
    }
    (seen, ended)
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![4 => 0..MEMORY - 64, 1 => any::<u64>()];
    let len = prop_oneof![8 => 0..64u32, 1 => any::<u32>()];
    let flags = prop_oneof![6 => 0..4u16, 1 => 0..8u16];
    (address, len, flags, 0..SIZE + 1)
}

proptest! {
    /// What our walk accepts the other walks to the same buffers; what ours refuses for an index or
    /// for too many bytes, the other does not see the end of.
    #[test]
    fn walks_are_the_same(
        table in prop::collection::vec(descriptor(), SIZE as usize),
        indirect in prop::collection::vec(descriptor(), SIZE as usize),
        at in 0..2 * SIZE,
        head in 0..SIZE,
    ) {
        let memory = guest_memory(&[(0, MEMORY as usize)]);
        let mut guest = GuestQueue::new(&memory, 0, SIZE);
        for (index, &(address, len, flags, next)) in (0..).zip(&table) {
            guest.write_descriptor(index, address, len, flags, next);
        }
        for (index, &(address, len, flags, next)) in (0..).zip(&indirect) {
            write_descriptor(&memory, TABLE + 16 * index, address, len, flags, next);
        }
        if at < SIZE {
            guest.write_descriptor(at, TABLE, 16 * u32::from(SIZE), F_INDIRECT, 0);
        }
        guest.offer(head);
        let mut queue = guest.device_side(0, Arc::new(event_fd()), Arc::new(FakeIrq::default()));
        let mut other = Queue::try_from(guest.setup().state).expect("valid");
        let mut chain = queue.new_chain();
        let walked = queue.next(&mut chain);
        let (seen, ended) = theirs(&mut other, &memory);
        match walked {
            Ok(_) => {
                prop_assert!(ended);
                prop_assert_eq!(ours(&memory, &chain), seen);
                prop_assert_eq!(queue.state(), other.state());
            }
            Err(QueueError::Malformed { source: ChainError::Index { .. } | ChainError::Bytes, .. }) => {
                prop_assert!(!ended);
            }
            Err(_) => {}
        }
    }

    /// Layouts: in memory of one region both accept the same.
    #[test]
    fn setups_are_valid_for_both(
        size in (0..10u32).prop_map(|bits| 1u16 << bits),
        desc_table in part(), avail_ring in part(), used_ring in part(), ready: bool,
    ) {
        let memory = guest_memory(&[(0, MEMORY as usize)]);
        let state = QueueState {
            max_size: 512, size, ready, desc_table, avail_ring, used_ring,
            ..QueueState::default()
        };
        let setup = QueueSetup { state, indirect: false };
        let (kick, irq) = (Arc::new(event_fd()), Arc::new(FakeIrq::default()));
        let mapped = VirtQueue::new(0, &setup, Arc::clone(&memory), kick, irq);
        let valid = Queue::try_from(state).is_ok_and(|queue| queue.is_valid(&*memory));
        prop_assert_eq!(mapped.is_ok(), valid);
    }

    /// Any order of a driver's and a device's steps leaves the same used ring, the same wishes for
    /// kicks and the same interrupts.
    #[test]
    fn rings_are_the_same(
        event_idx: bool,
        start: u16,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut pair = Pair::new(event_idx, start);
        for step in steps {
            pair.step(step)?;
        }
    }
}

fn part() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0..MEMORY / 16).prop_map(|at| at * 16),
        MEMORY - 0x2000..MEMORY + 16,
        any::<u64>()
    ]
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver offers a chain.
    Offer,
    /// The driver wants an interrupt from there on, relative to what it has seen.
    UsedEvent(u16),
    Take,
    /// The device gives the oldest chain back, and interrupts if that is wanted.
    Complete(u32),
    EnableKicks,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Offer),
        4 => Just(Step::Take),
        4 => any::<u32>().prop_map(Step::Complete),
        1 => (0..2 * SIZE).prop_map(Step::UsedEvent),
        1 => Just(Step::EnableKicks),
    ]
}

/// Two queues in two memories with one driver's steps.
struct Pair {
    guests: [GuestQueue; 2],
    queue: VirtQueue,
    irq: Arc<FakeIrq>,
    chain: Chain,
    other: Queue,
    memory: Arc<GuestMemory>,
    taken: VecDeque<u16>,
    offered: u16,
}

impl Pair {
    /// Queues whose indices start at `start`.
    fn new(event_idx: bool, start: u16) -> Self {
        let memories = [(); 2].map(|()| guest_memory(&[(0, MEMORY as usize)]));
        let guests = memories.each_ref().map(|memory| {
            let mut guest = GuestQueue::new(memory, 0, SIZE);
            if event_idx {
                guest = guest.with_event_idx();
            }
            guest.set_avail_idx(start);
            guest.set_used_event(start);
            guest
        });
        let mut setup = *guests[0].setup();
        (setup.state.next_avail, setup.state.next_used) = (start, start);
        let irq = Arc::new(FakeIrq::default());
        let (memory, kick) = (Arc::clone(&memories[0]), Arc::new(event_fd()));
        let queue = VirtQueue::new(0, &setup, memory, kick, irq.clone()).expect("valid");
        let mut pair = Self {
            chain: queue.new_chain(),
            queue,
            irq,
            other: Queue::try_from(setup.state).expect("valid"),
            memory: Arc::clone(&memories[1]),
            guests,
            taken: VecDeque::new(),
            offered: 0,
        };
        // Ours writes the used index once more where it goes on.
        pair.queue.notify();
        pair
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Offer if self.offered < SIZE => {
                self.offered += 1;
                for guest in &mut self.guests {
                    guest.add(&[Buffer::readable(DATA, 8)]);
                }
            }
            Step::Offer => {}
            Step::UsedEvent(ahead) => {
                let at = self
                    .other
                    .next_used()
                    .wrapping_add(ahead)
                    .wrapping_sub(SIZE);
                self.guests
                    .iter()
                    .for_each(|guest| guest.set_used_event(at));
            }
            Step::Take => {
                let took = self.queue.next(&mut self.chain).expect("good chains");
                let other = self.other.pop_descriptor_chain(&*self.memory);
                prop_assert_eq!(
                    took.then(|| self.chain.head()),
                    other.map(|chain| chain.head_index())
                );
                self.taken.extend(took.then(|| self.chain.head()));
            }
            Step::Complete(written) => self.complete(written)?,
            Step::EnableKicks => {
                let theirs = self.other.enable_notification(&*self.memory);
                prop_assert_eq!(self.queue.enable_kicks(), theirs.expect("in memory"));
            }
        }
        self.compare()
    }

    fn complete(&mut self, written: u32) -> Result<(), TestCaseError> {
        let Some(head) = self.taken.pop_front() else {
            return Ok(());
        };
        self.offered -= 1;
        let before = self.irq.count();
        self.queue.complete(head, written);
        self.queue.notify();
        let other = &mut self.other;
        other.add_used(&*self.memory, head, written).expect("valid");
        let wanted = other.needs_notification(&*self.memory).expect("in memory");
        prop_assert_eq!(self.irq.count() - before, usize::from(wanted));
        Ok(())
    }

    /// Both wrote the same.
    fn compare(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.queue.state(), self.other.state());
        let used = |memory: &GuestMemory| {
            let mut bytes = vec![0; Part::Used.len(SIZE)];
            let at = GuestAddress(self.other.used_ring());
            memory.read_slice(&mut bytes, at).expect("in memory");
            bytes[2..4].fill(0);
            bytes
        };
        prop_assert_eq!(used(self.queue.memory()), used(&self.memory));
        Ok(())
    }
}

#[test]
fn takes_what_the_others_driver_offers() {
    let memory = guest_memory(&[(0, 0x1_0000), (0x3000_0000, 0x1_0000)]);
    let mut driver = MockSplitQueue::new(&*memory, 16);
    let queue: Queue = driver.create_queue().expect("valid");
    let setup = QueueSetup {
        state: queue.state(),
        indirect: true,
    };
    let (kick, irq) = (Arc::new(event_fd()), Arc::new(FakeIrq::default()));
    let mut queue = VirtQueue::new(0, &setup, Arc::clone(&memory), kick, irq).expect("valid");
    let mut chain = queue.new_chain();
    for len in [1, 2, 5] {
        for indirect in [false, true] {
            // Each chain is at the start of the table: this driver frees nothing.
            match indirect {
                false => driver.add_chain(len).expect("room"),
                true => driver.add_indirect_chain(len).expect("room"),
            }
            assert!(queue.next(&mut chain).expect("good chains"));
            let buffer = (0x1000, 0x1000, false);
            assert_eq!(ours(&memory, &chain), vec![buffer; usize::from(len)]);
            queue.complete(chain.head(), 0);
        }
    }
    assert!(!queue.next(&mut chain).expect("good chains"));
    assert_eq!(driver.used().idx().load(), 6);
}
