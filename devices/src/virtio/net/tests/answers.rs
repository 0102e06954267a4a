//! Requests that are answered and packets that are dropped in the transmit path.

use std::sync::atomic::{AtomicBool, Ordering};

use smoltcp::wire::IpProtocol;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::{Bytes, GuestAddress};

use super::harness::*;
use crate::tap::HEADER_SIZE;

const MERGEABLE: &[u32] = &[VIRTIO_NET_F_MRG_RXBUF];
/// Where receive buffers are, behind the packet being sent.
const ANSWERS: u64 = HEAP + (1 << 16);

#[test]
fn dhcp_is_answered_inside() {
    let Some(mut bench) = Bench::new(1, MERGEABLE) else {
        return;
    };
    bench.kick_all();
    let discover = dhcp_discover();
    bench.offer_tx(&discover, 3);
    bench.kick(TX).expect("a good chain");
    assert_eq!(bench.peer.receive(), None, "the request must not leave");
    // The answer waits for a buffer; a second request meanwhile is dropped.
    bench.offer_tx(&discover, 1);
    bench.kick(TX).expect("a good chain");
    bench.offer_rx(HEAP + (1 << 16), 4, 1526);
    bench.kick(RX).expect("good buffers");
    let (_, written) = bench.queues[RX].pop_used().expect("an answer");
    assert_eq!(bench.queues[RX].pop_used(), None);
    let answer = bench.read(HEAP + (1 << 16), written as usize);
    assert_eq!(answer[..HEADER_SIZE], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    check_dhcp(&answer[HEADER_SIZE..], &lease());
    let stats = bench.stats();
    assert_eq!(
        (stats.dhcp_replies, stats.tx_packets, stats.tx_drops),
        (1, 0, 1)
    );
}

/// A UDP datagram of the guest.
fn udp(to: u16) -> Vec<u8> {
    let mut frame = [&PEER[..], &GUEST, &[0x08, 0x00, 0x45, 0, 0, 36]].concat();
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 9]);
    frame.extend([0, 67]);
    frame.extend(to.to_be_bytes());
    frame.extend([0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    frame
}

/// An IPv6 packet of the guest's link-local address to a multicast group.
fn ipv6(group: u16, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [
        &[0x33, 0x33, 0, 0][..],
        &group.to_be_bytes(),
        &GUEST,
        &[0x86, 0xdd],
    ]
    .concat();
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([
        next, 255, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
    ]);
    frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(group.to_be_bytes());
    frame.extend(payload);
    frame
}

fn solicitation() -> Vec<u8> {
    ipv6(2, 58, &[133, 0, 0, 0, 0, 0, 0, 0])
}

/// Which IPv6 answer comes next.
fn answer6(bench: &mut Bench) -> IpProtocol {
    let (head, written) = bench.queues[RX].pop_used().expect("an answer");
    let packet = bench.read(ANSWERS + 2048 * u64::from(head), written as usize);
    check_ipv6(&packet[HEADER_SIZE..])
}

/// Requests that come together are all answered.
#[test]
fn dhcpv6_and_router_solicitations_are_answered_inside() {
    let Some(mut bench) = Bench::new(1, MERGEABLE) else {
        return;
    };
    bench.offer_rx(ANSWERS, 8, 2048);
    bench.kick_all();
    let solicit = [
        0, 0, 1, 1, 2, 3, 0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 1, 0, 14, 0, 0,
    ];
    let udp = [&[2, 34, 2, 35, 0, 30][..], &solicit].concat();
    for frame in [ipv6(2, 17, &udp), solicitation(), dhcp_discover()] {
        bench.offer_tx(&frame, 2);
        bench.kick(TX).expect("a good chain");
    }
    while bench.queues[TX].pop_used().is_some() {}
    assert_eq!(bench.peer.receive(), None, "nothing may leave");
    assert_eq!(answer6(&mut bench), IpProtocol::Udp);
    assert_eq!(answer6(&mut bench), IpProtocol::Icmpv6);
    let stats = bench.stats();
    let counts = (
        stats.dhcp_replies,
        stats.dhcpv6_replies,
        stats.router_advertisements,
    );
    assert_eq!(
        (counts, stats.rx_packets, stats.tx_packets),
        ((1, 1, 1), 3, 0)
    );
}

/// A batch of requests in the ring: each answer is delivered before the next is made.
#[test]
fn a_batch_of_requests_is_answered() {
    let Some(mut bench) = Bench::new(1, MERGEABLE) else {
        return;
    };
    bench.offer_rx(ANSWERS, 8, 2048);
    bench.kick_all();
    for _ in 0..4 {
        bench.offer_tx(&solicitation(), 1);
    }
    bench.kick(TX).expect("good chains");
    for _ in 0..4 {
        // The wake-up that the handler gives itself.
        bench.handlers[0].readable(1).expect("good chains");
    }
    assert_eq!(bench.stats().router_advertisements, 4);
    assert_eq!((bench.stats().rx_packets, bench.stats().tx_drops), (4, 0));
}

#[test]
fn the_router_is_advertised_by_the_clock() {
    let Some(mut bench) = Bench::new(1, MERGEABLE) else {
        return;
    };
    bench.offer_rx(ANSWERS, 1, 2048);
    bench.kick_all();
    for _ in 0..3 {
        bench.handlers[0].readable(2).expect("good buffers");
    }
    assert_eq!(answer6(&mut bench), IpProtocol::Icmpv6);
    // The second waits for a buffer; a third beside it is not made.
    assert_eq!(
        (
            bench.stats().router_advertisements,
            bench.stats().rx_packets
        ),
        (2, 1)
    );
}

#[test]
fn impersonation_and_spoofing_are_dropped_and_counted() {
    let Some(mut bench) = Bench::new(1, MERGEABLE) else {
        return;
    };
    bench.kick_all();
    let mut spoofed = frame(GUEST, 60);
    spoofed[11] ^= 1;
    let hidden = ipv6(1, 60, &[&[58, 20][..], &[0; 166], &[134, 0, 0, 0]].concat());
    for frame in [udp(68), ipv6(1, 58, &[134, 0, 0, 0]), hidden, spoofed] {
        bench.offer_tx(&frame, 3);
        bench.kick(TX).expect("a good chain");
        assert!(bench.queues[TX].pop_used().is_some());
    }
    assert_eq!(bench.peer.receive(), None);
    let stats = bench.stats();
    assert_eq!((stats.impersonation_drops, stats.spoof_drops), (3, 1));
    assert_eq!((stats.tx_packets, stats.tx_errors), (0, 0));
    let fine = udp(53);
    bench.offer_tx(&fine, 3);
    bench.kick(TX).expect("a good chain");
    assert_eq!(bench.peer.receive(), Some(fine));
}

/// What has been looked at is what is sent, even if the guest changes it meanwhile.
#[test]
fn a_frame_that_changes_under_our_eyes_is_sent_as_it_was_seen() {
    let Some(mut bench) = Bench::new(1, MERGEABLE) else {
        return;
    };
    bench.kick_all();
    let port = GuestAddress(HEAP + HEADER_SIZE as u64 + 37);
    bench.offer_tx(&udp(53), 2);
    bench.kick(TX).expect("a good chain");
    let (memory, stop) = (bench.memory.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for value in [53u8, 68] {
                    memory.write_obj(value, port).expect("in memory");
                }
            }
        });
        for _ in 0..20_000 {
            bench.queues[TX].offer(0);
            bench.kick(TX).expect("a good chain");
            while let Some(frame) = bench.peer.receive() {
                assert_eq!(frame[37], 53);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let stats = bench.stats();
    assert!(
        stats.impersonation_drops > 0 && stats.tx_packets > 0,
        "{stats:?}"
    );
}
