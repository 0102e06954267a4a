//! Chains that no driver should make: the device asks for a reset or drops, and goes on.

use proptest::prelude::*;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
};

use super::harness::*;
use crate::virtio::testing::{Buffer, F_NEXT, F_WRITE};

const CONTROL: usize = 2;
const FEATURES: &[u32] = &[
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_CTRL_VQ,
];

#[test]
fn loops_and_wild_addresses_need_a_reset() {
    for position in [RX, TX, CONTROL] {
        let Some(mut bench) = Bench::new(1, FEATURES) else {
            return;
        };
        bench.kick_all();
        let write = if position == RX { F_WRITE } else { 0 };
        bench.queues[position].write_descriptor(0, HEAP, 64, F_NEXT | write, 0);
        bench.queues[position].offer(0);
        assert!(bench.kick(position).is_err(), "loop in queue {position}");

        bench.activate(FEATURES);
        bench.kick_all();
        bench.queues[position].write_descriptor(0, u64::MAX - 10, 64, write, 0);
        bench.queues[position].offer(0);
        assert!(
            bench.kick(position).is_err(),
            "wild address in queue {position}"
        );

        bench.activate(FEATURES);
        bench.kick_all();
        bench.queues[position].set_avail_idx(1000);
        assert!(
            bench.kick(position).is_err(),
            "wild index in queue {position}"
        );
    }
}

#[test]
fn useless_receive_chains_are_given_back() {
    let Some(mut bench) = Bench::new(1, FEATURES) else {
        return;
    };
    bench.kick_all();
    bench.queues[RX].add(&[Buffer::readable(HEAP, 2048)]);
    bench.queues[RX].add(&[Buffer::writable(HEAP, 0)]);
    bench.queues[RX].add(&[Buffer::readable(HEAP, 12), Buffer::writable(HEAP, 2048)]);
    bench.queues[RX].add(&[Buffer::writable(HEAP, 2048)]);
    bench.peer.send(&frame(PEER, 100));
    bench.handlers[0].readable(0).expect("dropped");
    let used: Vec<_> = std::iter::from_fn(|| bench.queues[RX].pop_used()).collect();
    assert_eq!(used, [(0, 0), (1, 0), (2, 0), (4, 112)]);
    assert_eq!(bench.stats().rx_errors, 3);
}

#[test]
fn one_byte_receive_buffers_work_or_drop() {
    let Some(mut bench) = Bench::new(1, FEATURES) else {
        return;
    };
    bench.kick_all();
    bench.offer_rx(HEAP, 256, 1);
    bench.peer.send(&frame(PEER, 200));
    bench.peer.send(&frame(PEER, 600));
    bench.peer.send(&frame(PEER, 20));
    bench.handlers[0].readable(0).expect("dropped");
    assert_eq!(
        std::iter::from_fn(|| bench.queues[RX].pop_used()).count(),
        212
    );
    assert_eq!(bench.read(HEAP + 10, 2), 212u16.to_le_bytes());

    // The second packet waits for more buffers, until the ring cannot hold more.
    bench.offer_rx(HEAP, 212, 1);
    bench.kick(RX).expect("dropped");
    assert_eq!(
        std::iter::from_fn(|| bench.queues[RX].pop_used()).count(),
        32
    );
    assert_eq!((bench.stats().rx_packets, bench.stats().rx_drops), (2, 1));
}

#[test]
fn packets_that_are_none_are_dropped() {
    let Some(mut bench) = Bench::new(1, FEATURES) else {
        return;
    };
    bench.kick_all();
    let bad_gso = [
        &[1, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        &frame(GUEST, 60)[..],
    ];
    bench.write(HEAP, &bad_gso.concat());
    let chains: &[&[Buffer]] = &[
        &[Buffer::writable(HEAP, 200)],
        &[Buffer::readable(HEAP, 0)],
        &[Buffer::readable(HEAP, 11)],
        &[Buffer::readable(HEAP, 12), Buffer::readable(HEAP, 13)],
        &[Buffer::readable(HEAP, 8 << 20)],
        &[Buffer::readable(HEAP, 72)],
    ];
    for chain in chains {
        bench.queues[TX].add(chain);
    }
    bench.kick(TX).expect("dropped");
    assert_eq!(
        std::iter::from_fn(|| bench.queues[TX].pop_used()).count(),
        chains.len()
    );
    assert_eq!(bench.stats().tx_errors, chains.len() as u64);
    assert_eq!(bench.peer.receive(), None);
}

#[test]
fn commands_that_are_none_are_refused() {
    let Some(mut bench) = Bench::new(1, FEATURES) else {
        return;
    };
    bench.kick_all();
    let commands: &[&[u8]] = &[
        &[],
        &[0],
        &[99, 0],
        &[0, 99],
        &[4, 0],
        &[4, 0, 1],
        &[4, 0, 1, 0],
        &[5, 0, 1],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    for command in commands {
        bench.write(HEAP, command);
        bench.write(HEAP + 100, &[7]);
        bench.queues[CONTROL].add(&[
            Buffer::readable(HEAP, command.len() as u32),
            Buffer::writable(HEAP + 100, 1),
        ]);
        bench.kick(CONTROL).expect("refused");
        assert!(matches!(bench.queues[CONTROL].pop_used(), Some((_, 1))));
        assert_eq!(bench.read(HEAP + 100, 1), [1], "{command:?}");
    }
    bench.queues[CONTROL].add(&[Buffer::readable(HEAP, 3)]);
    bench.kick(CONTROL).expect("no room for the answer");
    assert!(matches!(bench.queues[CONTROL].pop_used(), Some((_, 0))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the rings say, every call returns, and without a panic.
    #[test]
    fn random_rings_do_no_harm(
        descriptors in prop::collection::vec(
            (0u64..(17 << 20), 0u32..100_000, 0u16..8, 0u16..20), 16),
        heads in prop::collection::vec(0u16..18, 1..16),
        position in 0usize..3,
        data in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let Some(mut bench) = Bench::new(1, FEATURES) else { return Ok(()) };
        bench.kick_all();
        bench.write(HEAP, &data);
        for (index, &(address, len, flags, next)) in descriptors.iter().enumerate() {
            bench.queues[position].write_descriptor(index as u16, address, len, flags, next);
        }
        bench.peer.send(&frame(PEER, 1000));
        for &head in &heads {
            bench.queues[position].offer(head);
        }
        let _ = bench.kick(position);
    }
}
