//! The arithmetic of the rings for each size and each index that there is.

use virtio_queue::QueueState;

use super::*;
use crate::virtio::testing::guest_memory;

const GAP: u64 = 4096;

/// A ring of `size` entries whose parts have a gap of untouched bytes after them.
fn ring(memory: &Arc<GuestMemory>, size: u16) -> (Queue, SplitRing) {
    let avail_ring = Part::Descriptors.len(size) as u64 + GAP;
    let used_ring = (avail_ring + Part::Available.len(size) as u64 + GAP).next_multiple_of(4);
    let state = QueueState {
        max_size: size,
        size,
        ready: true,
        desc_table: 0,
        avail_ring,
        used_ring,
        ..QueueState::default()
    };
    let queue = Queue::try_from(state).expect("a good queue");
    let ring = SplitRing::map(memory, &queue).expect("in memory");
    (queue, ring)
}

fn sizes() -> impl Iterator<Item = u16> {
    (0..16).map(|bits| 1 << bits)
}

#[test]
fn each_index_has_its_slot_and_touches_nothing_else() {
    let memory = guest_memory(&[(0, 2 << 20)]);
    for size in sizes() {
        let (queue, ring) = ring(&memory, size);
        ring.set_avail_event(0x5aa5);
        ring.set_used_idx(0x1221);
        ring.set_kicks_off(true);
        for index in 0..=u16::MAX {
            let slot = u64::from(index % size);
            let at = GuestAddress(queue.avail_ring() + 4 + 2 * slot);
            memory.write_obj(index, at).expect("in memory");
            assert_eq!(ring.avail_head(index), index);
            ring.set_used(index, index, u32::from(index) << 16);
            let at = GuestAddress(queue.used_ring() + 4 + 8 * slot);
            let element: [u32; 2] = memory.read_obj(at).expect("in memory");
            assert_eq!(element, [index.into(), u32::from(index) << 16]);
        }
        let used = queue.used_ring();
        let read = |at| memory.read_obj::<u16>(GuestAddress(at)).expect("in memory");
        let event = used + 4 + 8 * u64::from(size);
        assert_eq!(
            [read(used), read(used + 2), read(event)],
            [1, 0x1221, 0x5aa5]
        );
        // Nothing before the part or after it.
        assert_eq!([read(used - 2), read(event + 2)], [0, 0]);
        let zeros = vec![0u8; 2 << 20];
        memory
            .write_slice(&zeros, GuestAddress(0))
            .expect("in memory");
    }
}

#[test]
fn the_last_descriptor_and_event_lie_in_their_parts() {
    let memory = guest_memory(&[(0, 2 << 20)]);
    for size in sizes() {
        let (queue, ring) = ring(&memory, size);
        let last = DESCRIPTOR_SIZE * usize::from(size - 1) + 8;
        ring.descriptors().load::<u64>(last, Ordering::Relaxed);
        let at = queue.avail_ring() + 4 + 2 * u64::from(size);
        memory
            .write_obj(0x77u16, GuestAddress(at))
            .expect("in memory");
        assert_eq!(ring.used_event(), 0x77);
        assert_eq!(
            at + 2,
            queue.avail_ring() + Part::Available.len(size) as u64
        );
    }
}
