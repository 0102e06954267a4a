//! Packets in both directions.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
};

use super::harness::*;
use crate::tap::HEADER_SIZE;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::Buffer;

const MERGEABLE: &[u32] = &[VIRTIO_NET_F_MRG_RXBUF];
const MERGEABLE_TSO: &[u32] = &[
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
];

#[test]
fn sends_what_the_guest_wrote() {
    let Some(mut bench) = Bench::new(1, &[]) else {
        return;
    };
    for parts in [1, 2, 7] {
        let sent = frame(GUEST, 1000);
        bench.offer_tx(&sent, parts);
        bench.kick(TX).expect("a good chain");
        assert_eq!(bench.peer.receive(), Some(sent));
        assert!(bench.queues[TX].pop_used().is_some());
    }
    let stats = bench.stats();
    assert_eq!(
        (stats.tx_packets, stats.tx_bytes, stats.tx_errors),
        (3, 3000, 0)
    );
}

#[test]
fn receives_into_one_buffer() {
    let Some(mut bench) = Bench::new(1, &[]) else {
        return;
    };
    bench.offer_rx(HEAP, 4, 2048);
    bench.kick_all();
    for index in 0..3 {
        let sent = frame(PEER, 900 + index);
        bench.peer.send(&sent);
        bench.handlers[0].readable(0).expect("good buffers");
        let (_, written) = bench.queues[RX].pop_used().expect("a packet");
        assert_eq!(written as usize, HEADER_SIZE + sent.len());
        let packet = bench.read(HEAP + 2048 * index as u64, written as usize);
        assert_eq!(packet[HEADER_SIZE..], sent);
        assert_eq!(packet[10..12], [1, 0], "num_buffers");
    }
    assert!(bench.irq.count() > 0);
    assert_eq!(bench.stats().rx_packets, 3);
}

/// Buffers of 100 bytes: fewer than 64 KiB in all, so packets are parked and merged.
#[test]
fn merges_small_buffers() {
    for features in [MERGEABLE, MERGEABLE_TSO] {
        let Some(mut bench) = Bench::new(1, features) else {
            return;
        };
        bench.offer_rx(HEAP, 100, 100);
        bench.kick_all();
        let sent = frame(PEER, 1400);
        bench.peer.send(&sent);
        bench.peer.send(&sent);
        bench.handlers[0].readable(0).expect("good buffers");
        for packet in 0..2 {
            let expected = HEADER_SIZE + sent.len();
            let chains = expected.div_ceil(100);
            let used: usize = (0..chains)
                .map(|_| bench.queues[RX].pop_used().expect("a buffer").1 as usize)
                .sum();
            assert_eq!(used, expected);
            let got = bench.read(HEAP + packet * 100 * chains as u64, expected);
            assert_eq!(got[10..12], (chains as u16).to_le_bytes());
            assert_eq!(got[HEADER_SIZE..], sent);
        }
        assert_eq!(bench.queues[RX].pop_used(), None);
    }
}

/// With room for the largest packet the kernel writes into many buffers itself.
#[test]
fn reads_straight_into_many_buffers() {
    let Some(mut bench) = Bench::new(1, MERGEABLE_TSO) else {
        return;
    };
    bench.offer_rx(HEAP, 256, 300);
    bench.kick_all();
    let sent = frame(PEER, 1200);
    bench.peer.send(&sent);
    bench.handlers[0].readable(0).expect("good buffers");
    let used: Vec<_> = std::iter::from_fn(|| bench.queues[RX].pop_used()).collect();
    assert_eq!(used, [(0, 300), (1, 300), (2, 300), (3, 300), (4, 12)]);
    assert_eq!(bench.read(HEAP + 12, sent.len()), sent);
}

#[test]
fn waits_for_buffers_without_losing_packets() {
    let Some(mut bench) = Bench::new(1, MERGEABLE) else {
        return;
    };
    bench.kick_all();
    let sent = frame(PEER, 500);
    bench.peer.send(&sent);
    bench.handlers[0]
        .readable(0)
        .expect("no buffers is no error");
    assert!(bench.queues[RX].kick_wanted());
    bench.offer_rx(HEAP, 1, 300);
    bench.kick(RX).expect("one small buffer");
    assert_eq!(bench.queues[RX].pop_used(), None);
    bench.offer_rx(HEAP + 300, 1, 300);
    bench.kick(RX).expect("two small buffers");
    assert_eq!(bench.queues[RX].pop_used(), Some((0, 300)));
    assert_eq!(bench.queues[RX].pop_used(), Some((1, 212)));
    assert_eq!(bench.read(HEAP + 12, 500), sent);
    assert_eq!(bench.stats().rx_drops, 0);
}

#[test]
fn a_packet_that_fits_nowhere_is_dropped() {
    let Some(mut bench) = Bench::new(1, &[]) else {
        return;
    };
    bench.offer_rx(HEAP, 2, 200);
    bench.kick_all();
    bench.peer.send(&frame(PEER, 1000));
    bench.peer.send(&frame(PEER, 100));
    bench.handlers[0]
        .readable(0)
        .expect("small buffers are no error");
    assert_eq!(bench.queues[RX].pop_used(), Some((0, 112)));
    assert_eq!(bench.queues[RX].pop_used(), None);
    assert_eq!((bench.stats().rx_packets, bench.stats().rx_drops), (1, 1));
}

#[test]
fn a_link_that_is_down_drops_both_ways() {
    let Some(mut bench) = Bench::new(1, &[]) else {
        return;
    };
    bench.kick_all();
    let mut config = [0; 2];
    bench.net.read_config(6, &mut config);
    assert_eq!(config, [1, 0]);
    assert!(bench.net.set_link(false));
    assert!(!bench.net.set_link(false));
    bench.net.read_config(6, &mut config);
    assert_eq!(config, [0, 0]);

    bench.offer_rx(HEAP + 4096, 2, 2048);
    bench.offer_tx(&frame(GUEST, 100), 1);
    bench.peer.send(&frame(PEER, 100));
    bench.kick_all();
    assert!(bench.queues[TX].pop_used().is_some());
    assert_eq!(bench.queues[RX].pop_used(), None);
    assert_eq!(bench.peer.receive(), None);
    assert_eq!((bench.stats().rx_drops, bench.stats().tx_drops), (1, 1));

    assert!(bench.net.set_link(true));
    bench.peer.send(&frame(PEER, 100));
    bench.handlers[0].readable(0).expect("good buffers");
    assert!(bench.queues[RX].pop_used().is_some());
}

#[test]
fn a_burst_is_received_in_turns() {
    let Some(mut bench) = Bench::new(1, MERGEABLE) else {
        return;
    };
    bench.kick_all();
    for _ in 0..300 {
        bench.peer.send(&frame(PEER, 60));
    }
    let mut received = 0;
    for _ in 0..3 {
        bench.offer_rx(HEAP, 200, 2048);
        bench.kick(RX).expect("good buffers");
        received += std::iter::from_fn(|| bench.queues[RX].pop_used()).count();
    }
    assert_eq!(received, 300);
}

#[test]
fn a_packet_left_from_an_earlier_driver_is_not_received() {
    let Some(mut bench) = Bench::new(1, MERGEABLE_TSO) else {
        return;
    };
    bench.kick_all();
    bench.peer.send(&frame(PEER, 700));
    bench.activate(MERGEABLE);
    bench.queues[RX].add(&[Buffer::writable(HEAP, 2048)]);
    bench.kick_all();
    assert_eq!(bench.queues[RX].pop_used(), None);
    bench.peer.send(&frame(PEER, 80));
    bench.handlers[0].readable(0).expect("good buffers");
    assert_eq!(bench.queues[RX].pop_used(), Some((0, 92)));
}
