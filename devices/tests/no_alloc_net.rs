//! Moving packets does not allocate. Skipped, with the reason, where no TAP can be made.

mod counting;

use std::sync::Arc;

use devices::virtio::net::testing::{GUEST, Peer, dhcp_discover, spec, taps};
use devices::virtio::net::{Backend, NetStats};
use devices::virtio::testing::{Buffer, FakeIrq, GuestQueue, event_fd, guest_memory};
use devices::virtio::{Activation, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZE: u16 = 256;
const PACKET: u64 = 0x8_0000;
const RX_BUFFERS: u64 = 0x10_0000;
const BUFFER: u32 = 1536;
const BATCH: u64 = 32;
/// Where further packets to send go.
const OTHERS: u64 = 0x9_0000;

/// ICMPv6 of this type, behind destination options if there are any.
fn icmpv6(kind: u8, options: &[u8]) -> Vec<u8> {
    let mut frame = [
        &[0x33, 0x33, 0, 0, 0, 2][..],
        &GUEST,
        &[0x86, 0xdd, 0x60, 0, 0, 0],
    ]
    .concat();
    let header = if options.is_empty() {
        0
    } else {
        8 + options.len()
    };
    frame.extend((header as u16 + 8).to_be_bytes());
    frame.extend([if options.is_empty() { 58 } else { 60 }, 255]);
    frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    if header > 0 {
        frame.extend([58, (options.len() / 8) as u8, 0, 0, 0, 0, 0, 0]);
        frame.extend(options);
    }
    frame.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    frame
}

fn router_solicitation() -> Vec<u8> {
    icmpv6(133, &[])
}

fn router_advertisement(options: &[u8]) -> Vec<u8> {
    icmpv6(134, options)
}

#[test]
fn packets_both_ways() {
    let Some(taps) = taps(1) else { return };
    let peer = Peer::new("tap0");
    let mut net = spec(Backend::Taps(taps)).build().expect("good spec");

    let memory = guest_memory(&[(0, 0x40_0000)]);
    let irq = Arc::new(FakeIrq::default());
    let mut guest: Vec<_> = (0..2)
        .map(|index| GuestQueue::new(&memory, index * GuestQueue::bytes(QUEUE_SIZE), QUEUE_SIZE))
        .collect();
    let queues = (0..)
        .zip(&guest)
        .map(|(index, queue)| queue.device_side(index, Arc::new(event_fd()), irq.clone()));
    let activation = Activation {
        features: net.features(),
        queues: queues.collect(),
        resumed: false,
        config_irq: irq.clone(),
    };
    let mut handler = net.activate(activation).expect("activates").remove(0);
    handler.kicked(RX).expect("good queue");
    handler.kicked(TX).expect("good queue");

    let mut frame = [0xff; 600];
    frame[6..12].copy_from_slice(&GUEST);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    let others = [
        dhcp_discover(),
        router_solicitation(),
        router_advertisement(&[]),
        router_advertisement(&[0; 160]),
    ];
    let mut address = OTHERS;
    let others = others.map(|other| {
        address += 1024;
        let packet = [&[0; 12][..], &other].concat();
        memory
            .write_slice(&packet, GuestAddress(address))
            .expect("in memory");
        Buffer::readable(address, packet.len() as u32)
    });
    memory
        .write_slice(&[0; 12], GuestAddress(PACKET))
        .expect("in memory");
    memory
        .write_slice(&frame, GuestAddress(PACKET + 12))
        .expect("in memory");
    for slot in 0..200 {
        let address = RX_BUFFERS + u64::from(BUFFER) * slot;
        guest[RX].add(&[Buffer::writable(address, BUFFER)]);
    }
    let stats = |net: &dyn VirtioDevice| -> NetStats {
        serde_json::from_value(net.stats()).expect("a NIC")
    };
    let first = stats(&net);
    for round in 0..20 {
        let before = counting::allocations();
        for _ in 0..BATCH {
            peer.send(&frame);
            guest[TX].add(&[
                Buffer::readable(PACKET, 12),
                Buffer::readable(PACKET + 12, 600),
            ]);
        }
        handler.readable(0).expect("good queue");
        handler.kicked(TX).expect("good queue");
        for other in &others {
            guest[TX].add(std::slice::from_ref(other));
            handler.kicked(TX).expect("good queue");
        }
        // The clock of advertisements.
        handler.readable(2).expect("good queue");
        for _ in 0..BATCH + others.len() as u64 {
            assert!(guest[TX].pop_used().is_some());
        }
        while let Some((head, _)) = guest[RX].pop_used() {
            guest[RX].offer(head);
        }
        handler.kicked(RX).expect("good queue");
        assert_eq!(counting::allocations() - before, 0, "round {round}");
    }
    let last = stats(&net);
    assert!(last.rx_packets - first.rx_packets >= 20 * BATCH);
    assert_eq!(last.tx_packets - first.tx_packets, 20 * BATCH);
    assert_eq!((last.rx_drops, last.tx_drops, last.tx_errors), (0, 0, 0));
    let answers = (last.dhcp_replies, last.router_advertisements);
    assert_eq!((answers, last.impersonation_drops), ((20, 40), 40));
}
