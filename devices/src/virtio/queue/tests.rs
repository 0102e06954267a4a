use super::*;
use crate::virtio::testing::{Buffer, FakeIrq, GuestQueue, event_fd, guest_memory};

const SIZE: u16 = 4;

struct Fixture {
    guest: GuestQueue,
    queue: VirtQueue,
    chain: Chain,
    irq: Arc<FakeIrq>,
}

fn fixture(event_idx: bool) -> Fixture {
    let memory = guest_memory(&[(0, 0x10000)]);
    let mut guest = GuestQueue::new(&memory, 0, SIZE);
    if event_idx {
        guest = guest.with_event_idx();
    }
    let irq = Arc::new(FakeIrq::default());
    let queue = guest.device_side(0, Arc::new(event_fd()), irq.clone());
    let chain = queue.new_chain();
    Fixture {
        guest,
        queue,
        chain,
        irq,
    }
}

impl Fixture {
    fn add(&mut self) -> u16 {
        self.guest.add(&[Buffer::writable(0x8000, 8)])
    }

    fn next(&mut self) -> Option<u16> {
        let some = self.queue.next(&mut self.chain).expect("good queue");
        some.then(|| self.chain.head())
    }
}

#[test]
fn gives_chains_in_order_and_wraps() {
    let mut f = fixture(false);
    for round in 0..70_000u32 {
        let head = f.add();
        assert_eq!(f.next(), Some(head));
        assert_eq!(f.next(), None);
        f.queue.complete(head, round);
        assert_eq!(f.guest.pop_used(), Some((head, round)));
    }
}

#[test]
fn shows_a_batch_at_once() {
    let mut f = fixture(false);
    let heads = [f.add(), f.add(), f.add()];
    for head in heads {
        assert_eq!(f.next(), Some(head));
        f.queue.push_used(head, 1);
    }
    assert_eq!(f.guest.pop_used(), None);
    f.queue.publish();
    for head in heads {
        assert_eq!(f.guest.pop_used(), Some((head, 1)));
    }
}

#[test]
fn takes_back_chains() {
    let mut f = fixture(false);
    let heads = [f.add(), f.add()];
    assert_eq!([f.next(), f.next()], heads.map(Some));
    f.queue.undo_next(2);
    assert_eq!(
        [f.next(), f.next(), f.next()],
        [Some(heads[0]), Some(heads[1]), None]
    );
}

#[test]
fn refuses_an_available_index_too_far_ahead() {
    for index in [SIZE + 1, 0x8000, 0xffff] {
        let mut f = fixture(false);
        f.guest.set_avail_idx(index);
        let error = f.queue.next(&mut f.chain).expect_err("too far");
        assert!(matches!(error, QueueError::AvailIndex { next: 0, avail, .. } if avail == index));
    }
}

#[test]
fn interrupts_unless_the_driver_asks_not_to() {
    let mut f = fixture(false);
    f.queue.notify();
    assert_eq!(f.irq.count(), 0, "nothing used");
    let head = f.add();
    f.queue.complete(head, 0);
    f.queue.notify();
    f.queue.notify();
    assert_eq!(f.irq.count(), 1);
    f.guest.set_avail_flags(1);
    f.queue.complete(head, 0);
    f.queue.notify();
    assert_eq!(f.irq.count(), 1);
}

#[test]
fn interrupts_when_the_used_event_is_passed() {
    let mut f = fixture(true);
    f.guest.set_used_event(2);
    for (used, interrupts) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1)] {
        f.queue.push_used(0, 0);
        f.queue.notify();
        assert_eq!(f.guest.used_idx(), used);
        assert_eq!(f.irq.count(), interrupts);
    }
    f.guest.set_used_event(6);
    (0..4).for_each(|_| f.queue.push_used(0, 0));
    f.queue.notify();
    assert_eq!(f.irq.count(), 2, "passed in the middle of a batch");
    f.guest.set_used_event(5);
    f.queue.push_used(0, 0);
    f.queue.notify();
    assert_eq!(f.irq.count(), 2, "an old event");
}

#[test]
fn asks_for_kicks_and_sees_chains_that_came_meanwhile() {
    for event_idx in [false, true] {
        let mut f = fixture(event_idx);
        assert!(!f.queue.enable_kicks());
        f.add();
        assert!(f.guest.kick_wanted());
        f.queue.disable_kicks();
        assert!(f.next().is_some());
        f.add();
        assert!(!f.guest.kick_wanted());
        assert!(f.queue.enable_kicks(), "a chain came meanwhile");
        assert!(f.next().is_some());
        assert!(!f.queue.enable_kicks());
        f.add();
        assert!(f.guest.kick_wanted());
    }
}

#[test]
fn refuses_setups_that_break_the_rules() {
    let memory = guest_memory(&[(0, 0x10000)]);
    let good = *GuestQueue::new(&memory, 0, SIZE).setup();
    let check = |change: fn(&mut QueueState)| {
        let mut setup = good;
        change(&mut setup.state);
        let irq = Arc::new(FakeIrq::default());
        VirtQueue::new(0, &setup, memory.clone(), Arc::new(event_fd()), irq).err()
    };
    assert!(check(|_| {}).is_none());
    for change in [
        (|state| state.max_size = 3) as fn(&mut QueueState),
        |state| state.size = 0,
        |state| state.size = 3,
        |state| state.size = 2 * SIZE,
        |state| state.desc_table += 8,
        |state| state.avail_ring += 1,
        |state| state.used_ring += 2,
    ] {
        let error = check(change).expect("against the rules");
        assert!(matches!(error, QueueSetupError::Configuration(_)));
    }
    let error = check(|state| state.ready = false).expect("not enabled");
    assert!(matches!(error, QueueSetupError::NotEnabled));
    for (part, change) in [
        (
            Part::Descriptors,
            (|state| state.desc_table = 0x10000) as fn(&mut QueueState),
        ),
        (Part::Descriptors, |state| state.desc_table = 0xfff0),
        (Part::Available, |state| state.avail_ring = u64::MAX - 1),
        (Part::Used, |state| state.used_ring = 0xfffc),
        (Part::Descriptors, |state| {
            (state.max_size, state.size) = (32768, 32768);
        }),
    ] {
        let error = check(change).expect("not in memory");
        assert!(matches!(error, QueueSetupError::Memory { part: at, .. } if at == part));
    }
}

#[test]
fn goes_on_where_another_left_off() {
    for event_idx in [false, true] {
        let mut f = fixture(event_idx);
        let heads = [f.add(), f.add(), f.add()];
        f.guest.set_used_event(1);
        assert_eq!([f.next(), f.next()], [Some(heads[0]), Some(heads[1])]);
        f.queue.push_used(heads[0], 5);
        f.queue.push_used(heads[1], 6);
        let setup = QueueSetup {
            state: f.queue.state(),
            indirect: true,
        };
        let irq = Arc::new(FakeIrq::default());
        let memory = Arc::clone(f.queue.memory());
        f.queue = VirtQueue::new(0, &setup, memory, Arc::new(event_fd()), irq.clone())
            .expect("a good state");
        assert_eq!(f.next(), Some(heads[2]));
        assert_eq!(f.next(), None);
        f.queue.notify();
        assert_eq!(irq.count(), 1, "the driver hears of what it was not told");
        f.queue.complete(heads[2], 7);
        let used = [f.guest.pop_used(), f.guest.pop_used(), f.guest.pop_used()];
        assert_eq!(
            used,
            [(heads[0], 5), (heads[1], 6), (heads[2], 7)].map(Some)
        );
    }
}

#[test]
fn does_not_interrupt_for_what_the_driver_has_seen_before() {
    let mut f = fixture(true);
    for _ in 0..2 {
        let head = f.add();
        assert_eq!(f.next(), Some(head));
        f.queue.complete(head, 0);
        f.guest.pop_used();
    }
    f.guest.set_used_event(2);
    let (setup, irq) = (
        QueueSetup {
            state: f.queue.state(),
            indirect: true,
        },
        Arc::new(FakeIrq::default()),
    );
    let memory = Arc::clone(f.queue.memory());
    let kick = Arc::new(event_fd());
    let mut queue = VirtQueue::new(0, &setup, memory, kick, irq.clone()).expect("a good state");
    queue.notify();
    assert_eq!(irq.count(), 0);
}

/// For every distance that an index can go, and each event at its edges: an event counts as passed if
/// the index went over it. By which numbers the indices start makes no difference.
#[test]
fn an_event_is_passed_where_the_index_goes_over_it() {
    for distance in 0..=u16::MAX {
        let start = distance.wrapping_mul(0x9e37);
        let edges = [0, 1, distance / 2, distance.wrapping_sub(1), distance];
        let edges = edges
            .into_iter()
            .chain([distance.wrapping_add(1), 0x8000, u16::MAX]);
        for event in edges {
            for from in [0, 1, 0x7fff, 0x8000, u16::MAX, start] {
                let (at, to) = (from.wrapping_add(event), from.wrapping_add(distance));
                assert_eq!(
                    passed(at, from, to),
                    event < distance,
                    "{event} of {distance}"
                );
            }
        }
    }
}
