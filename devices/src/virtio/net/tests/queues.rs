//! Queue layout, multi-queue and guest offloads; with real workers where threads matter.

use std::fs::File;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
};

use super::harness::*;
use crate::virtio::net::{Backend, BuildNetError, Stream};
use crate::virtio::testing::{Buffer, wait_for};
use crate::virtio::worker::Worker;
use crate::virtio::{Activation, VirtioDevice};

const MQ: &[u32] = &[
    VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_MRG_RXBUF,
];

/// Sends a command through control queue `queue`, without waiting.
fn offer_command(bench: &mut Bench, queue: usize, command: &[u8]) {
    bench.write(HEAP, command);
    bench.write(HEAP + 100, &[7]);
    let len = command.len() as u32;
    bench.queues[queue].add(&[Buffer::readable(HEAP, len), Buffer::writable(HEAP + 100, 1)]);
}

fn command(bench: &mut Bench, queue: usize, command: &[u8]) -> u8 {
    offer_command(bench, queue, command);
    bench.kick(2).expect("a good chain");
    assert!(matches!(bench.queues[queue].pop_used(), Some((_, 1))));
    bench.read(HEAP + 100, 1)[0]
}

#[test]
fn bad_specs_are_refused() {
    let null = || File::open("/dev/null").expect("/dev/null");
    let build = |spec: crate::virtio::net::NetSpec| spec.build().err();
    assert!(matches!(
        build(spec(Backend::Taps(Vec::new()))),
        Some(BuildNetError::Pairs { pairs: 0, .. })
    ));
    assert!(matches!(
        build(spec(Backend::Taps(vec![null()]))),
        Some(BuildNetError::NotTap { index: 0, .. })
    ));
    let stream = Backend::Stream(Arc::new(Stream::new(null())));
    assert!(matches!(
        build(spec(stream)),
        Some(BuildNetError::NotStream { .. })
    ));
    let mut short = spec(Backend::Taps(vec![null()]));
    short.options.queue_pairs = 2;
    assert!(matches!(
        build(short),
        Some(BuildNetError::Taps {
            taps: 1,
            pairs: 2,
            ..
        })
    ));
}

#[test]
fn configuration_space_is_bounded() {
    let Some(bench) = Bench::new(2, MQ) else {
        return;
    };
    let mut config = [0xee; 16];
    bench.net.read_config(0, &mut config);
    assert_eq!(config[..6], GUEST);
    assert_eq!(config[6..12], [1, 0, 2, 0, 0xdc, 5]);
    assert_eq!(config[12..], [0; 4]);
    bench.net.read_config(u64::MAX - 3, &mut config);
    assert_eq!(config, [0; 16]);
}

#[test]
fn control_queue_follows_the_pairs_in_use() {
    let Some(mut bench) = Bench::new(2, MQ) else {
        return;
    };
    bench.kick_all();
    assert_eq!(bench.handlers.len(), 2);
    assert_eq!(command(&mut bench, 4, &[4, 0, 2, 0]), 0);
    assert_eq!(command(&mut bench, 4, &[4, 0, 1, 0]), 0);
    assert_eq!(command(&mut bench, 4, &[4, 0, 0, 0]), 1);
    assert_eq!(command(&mut bench, 4, &[4, 0, 3, 0]), 1);
    bench.activate(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_CTRL_RX]);
    bench.kick_all();
    assert_eq!(bench.handlers.len(), 1);
    assert_eq!(command(&mut bench, 2, &[0, 0, 1]), 0, "promiscuous");
    assert_eq!(command(&mut bench, 2, &[4, 0, 1, 0]), 1, "no multi-queue");
}

#[test]
fn guest_offloads_can_be_changed_within_the_negotiated_ones() {
    let features = [
        VIRTIO_NET_F_CTRL_VQ,
        VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_GUEST_TSO4,
    ];
    let Some(mut bench) = Bench::new(1, &features) else {
        return;
    };
    bench.kick_all();
    let mut set = |bits: u64| command(&mut bench, 2, &[&[5, 0][..], &bits.to_le_bytes()].concat());
    assert_eq!(set(0), 0);
    assert_eq!(
        set(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4),
        0
    );
    assert_eq!(set(1 << VIRTIO_NET_F_GUEST_TSO4), 0, "useless but allowed");
    assert_eq!(set(1 << 8), 1, "not negotiated");
    assert_eq!(set(1 << 63), 1);
}

/// Two pairs on worker threads, for two drivers after each other: all packets arrive on the first
/// pair until the driver wants both.
#[test]
fn packets_spread_over_the_pairs_in_use() {
    let Some(mut bench) = Bench::new(2, MQ) else {
        return;
    };
    for driver in 0..2 {
        bench.activate(MQ);
        let before = bench.stats().rx_packets;
        let received = |bench: &Bench| bench.stats().rx_packets - before;
        for pair in [0, 2] {
            for index in 0..200 {
                let address = HEAP + 4096 + (pair as u64 * 200 + index) * 2048;
                bench.queues[pair].add(&[Buffer::writable(address, 2048)]);
            }
        }
        let workers = spawn(&mut bench);
        // An answer says that the first handler has taken over the TAP.
        offer_command(&mut bench, 4, &[4, 0, 1, 0]);
        kick(&workers);
        bench.queues[4].wait_used();
        let flows = |bench: &Bench| {
            for flow in 0..32u16 {
                bench.peer.send(&udp(flow));
            }
        };
        flows(&bench);
        wait_for("packets on the first pair", || received(&bench) == 32);
        assert_eq!(
            (bench.queues[0].used_idx(), bench.queues[2].used_idx()),
            (32, 0)
        );

        offer_command(&mut bench, 4, &[4, 0, 2, 0]);
        kick(&workers);
        assert_eq!(bench.queues[4].wait_used().1, 1);
        assert_eq!(bench.read(HEAP + 100, 1), [0]);
        flows(&bench);
        wait_for("packets on both pairs", || received(&bench) == 64);
        assert!(
            bench.queues[2].used_idx() > 0,
            "driver {driver} got nothing on its second pair"
        );

        offer_command(&mut bench, 4, &[4, 0, 1, 0]);
        kick(&workers);
        bench.queues[4].wait_used();
        let second = bench.queues[2].used_idx();
        flows(&bench);
        wait_for("packets on the first pair", || received(&bench) == 96);
        assert_eq!(bench.queues[2].used_idx(), second);
    }
}

/// Workers with the kick of the control queue, the only one the test needs.
struct Workers {
    control_kick: Arc<vmm_sys_util::eventfd::EventFd>,
    _workers: Vec<Worker>,
}

fn spawn(bench: &mut Bench) -> Workers {
    let control_kick = Arc::new(crate::virtio::testing::event_fd());
    let queues = bench.queues.iter().enumerate().map(|(index, queue)| {
        let kick = if index == 4 {
            Arc::clone(&control_kick)
        } else {
            Arc::new(crate::virtio::testing::event_fd())
        };
        queue.device_side(index as u16, kick, bench.irq.clone())
    });
    let features = MQ.iter().fold(0, |all, &bit| all | 1 << bit);
    let activation = Activation {
        features,
        queues: queues.collect(),
        resumed: false,
        config_irq: bench.irq.clone(),
    };
    bench.handlers.clear();
    let handlers = bench.net.activate(activation).expect("the driver is right");
    let workers = handlers.into_iter().map(|handler| {
        let failed = Box::new(|error| panic!("{error}"));
        Worker::spawn(
            "net",
            crate::thread::ThreadRole::Device("net"),
            handler,
            Arc::new(|_| Ok(())),
            failed,
        )
        .expect("a worker")
    });
    Workers {
        _workers: workers.collect(),
        control_kick,
    }
}

fn kick(workers: &Workers) {
    workers.control_kick.write(1).expect("room in the counter");
}

/// A UDP packet to the guest; the kernel chooses the queue by addresses and ports.
fn udp(flow: u16) -> Vec<u8> {
    let mut frame = [&GUEST[..], &PEER, &[0x08, 0x00, 0x45, 0, 0, 32]].concat();
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend((1000 + 7 * flow).to_be_bytes());
    frame.extend([0, 80, 0, 12, 0, 0, 1, 2, 3, 4]);
    frame
}
