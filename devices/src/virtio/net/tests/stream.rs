//! A NIC on a stream socket, as passt is connected.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use proptest::prelude::*;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};

use super::harness::*;
use crate::tap::HEADER_SIZE;
use crate::virtio::net::{Backend, Stream};
use crate::virtio::testing::wait_for;
use crate::virtio::worker::Worker;
use crate::virtio::{Activation, VirtioDevice};

const MERGEABLE: &[u32] = &[VIRTIO_NET_F_MRG_RXBUF];
/// Where receive buffers are, behind the packet being sent.
const BUFFERS: u64 = HEAP + (1 << 17);

impl Bench<UnixStream> {
    fn stream() -> Self {
        let (ours, peer) = UnixStream::pair().expect("a socket pair");
        ours.set_nonblocking(true).expect("our own");
        peer.set_nonblocking(true).expect("our own");
        let stream = Arc::new(Stream::new(OwnedFd::from(ours).into()));
        Self::with(spec(Backend::Stream(stream)), peer, MERGEABLE)
    }

    fn send(&mut self, frame: &[u8]) {
        self.peer
            .write_all(&prefixed(frame))
            .expect("there is room");
    }

    /// What has come to the peer.
    fn received(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.peer.read_to_end(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => bytes,
            other => panic!("{other:?}"),
        }
    }

    /// The next received packet's frame, if it is in one buffer.
    fn delivered(&mut self) -> Option<Vec<u8>> {
        let (head, written) = self.queues[RX].pop_used()?;
        let packet = self.read(BUFFERS + 2048 * u64::from(head), written as usize);
        assert_eq!(packet[..HEADER_SIZE], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        Some(packet[HEADER_SIZE..].to_vec())
    }

    fn status(&self) -> u8 {
        let mut config = [0; 1];
        self.net.read_config(6, &mut config);
        config[0]
    }
}

fn prefixed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

#[test]
fn nothing_is_offered_that_a_stream_cannot_do() {
    let bench = Bench::stream();
    let offered = |bit: u32| bench.net.features() & (1 << bit) != 0;
    for bit in [
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_MQ,
    ] {
        assert!(!offered(bit), "feature {bit}");
    }
    assert!(offered(VIRTIO_NET_F_MTU) && offered(VIRTIO_NET_F_MRG_RXBUF));
}

#[test]
fn frames_go_both_ways_behind_their_lengths() {
    let mut bench = Bench::stream();
    bench.kick_all();
    for (parts, len) in [(1, 60), (2, 1000), (7, 1514), (3, 20_000)] {
        let sent = frame(GUEST, len);
        bench.offer_tx(&sent, parts);
        bench.kick(TX).expect("a good chain");
        assert_eq!(bench.received(), prefixed(&sent));
    }
    bench.offer_rx(BUFFERS, 8, 2048);
    for len in [60, 61, 1514] {
        bench.send(&frame(PEER, len));
    }
    bench.handlers[0].readable(0).expect("good buffers");
    for len in [60, 61, 1514] {
        assert_eq!(bench.delivered(), Some(frame(PEER, len)));
    }
    let stats = bench.stats();
    assert_eq!((stats.tx_packets, stats.tx_bytes), (4, 22_574));
    assert_eq!(
        (stats.rx_packets, stats.rx_bytes, stats.link_up),
        (3, 1635, true)
    );
}

#[test]
fn answers_and_rules_are_the_same() {
    let mut bench = Bench::stream();
    bench.kick_all();
    let mut spoofed = frame(GUEST, 60);
    spoofed[11] ^= 1;
    bench.offer_tx(&spoofed, 1);
    bench.kick(TX).expect("a good chain");
    assert!(bench.received().is_empty());
    assert_eq!(bench.stats().spoof_drops, 1);
}

#[test]
fn a_peer_that_does_not_read_makes_the_guest_wait() {
    let mut bench = Bench::stream();
    bench.kick_all();
    let sent = frame(GUEST, 60_000);
    bench.offer_tx(&sent, 4);
    while bench.queues[TX].pop_used().is_some() || bench.stats().tx_packets == 0 {
        bench.kick(TX).expect("good chains");
        bench.offer_tx(&sent, 4);
        assert!(bench.stats().tx_packets < 1000, "the socket takes all");
    }
    let before = bench.stats();
    bench.kick(TX).expect("good chains");
    assert_eq!(bench.stats(), before, "nothing is taken from the guest");

    // Room again: the rest of the frame and those that wait follow, in order and whole.
    let mut bytes = Vec::new();
    for _ in 0..1000 {
        let more = bench.received();
        if more.is_empty() {
            break;
        }
        bytes.extend(more);
        bench.handlers[0].readable(0).expect("good chains");
    }
    let frames = bench.stats().tx_packets as usize;
    assert!(frames > before.tx_packets as usize);
    assert_eq!(bytes, prefixed(&sent).repeat(frames));
    assert_eq!((bench.stats().tx_drops, bench.stats().tx_errors), (0, 0));
}

#[test]
fn a_guest_without_buffers_makes_the_peer_wait() {
    let mut bench = Bench::stream();
    bench.kick_all();
    let sent = frame(PEER, 1000);
    bench.send(&sent);
    bench.send(&sent);
    bench.handlers[0]
        .readable(0)
        .expect("no buffers is no error");
    assert!(bench.queues[RX].kick_wanted());
    for _ in 0..2 {
        bench.offer_rx(BUFFERS, 1, 2048);
        bench.kick(RX).expect("good buffers");
        let (_, written) = bench.queues[RX].pop_used().expect("a packet");
        assert_eq!(bench.read(BUFFERS, written as usize)[HEADER_SIZE..], sent);
    }
    assert_eq!(bench.stats().rx_drops, 0);
}

/// A new driver finds the stream where the old one left it, inside of a frame.
#[test]
fn a_reset_does_not_lose_the_step() {
    let mut bench = Bench::stream();
    bench.offer_rx(BUFFERS, 4, 2048);
    bench.kick_all();
    let sent = frame(PEER, 1000);
    let bytes = prefixed(&sent);
    bench.peer.write_all(&bytes[..500]).expect("there is room");
    bench.handlers[0].readable(0).expect("good buffers");
    bench.activate(MERGEABLE);
    bench.offer_rx(BUFFERS, 4, 2048);
    bench.kick_all();
    bench.peer.write_all(&bytes[500..]).expect("there is room");
    bench.handlers[0].readable(0).expect("good buffers");
    assert_eq!(bench.delivered(), Some(sent));
}

/// What the stream did not take of the old driver's frame follows without the new one's doing.
#[test]
fn a_reset_does_not_keep_the_rest_of_a_frame() {
    let mut bench = Bench::stream();
    bench.kick_all();
    let sent = frame(GUEST, 60_000);
    while bench.stats().tx_packets == 0 || bench.queues[TX].pop_used().is_some() {
        bench.offer_tx(&sent, 4);
        bench.kick(TX).expect("good chains");
    }
    let frames = bench.stats().tx_packets as usize;
    bench.activate(MERGEABLE);
    bench.kick_all();
    let mut bytes = bench.received();
    assert_ne!(bytes.len() % prefixed(&sent).len(), 0, "nothing is left");
    bench.handlers[0].readable(0).expect("good chains");
    bytes.extend(bench.received());
    assert_eq!(bytes, prefixed(&sent).repeat(frames));
}

#[test]
fn a_lost_peer_takes_the_link_down_and_nothing_else() {
    let closed = |bench: &mut Bench<UnixStream>| {
        bench.peer.shutdown(std::net::Shutdown::Both).expect("open");
    };
    let runt = |bench: &mut Bench<UnixStream>| bench.send(&[0; 13]);
    let giant = |bench: &mut Bench<UnixStream>| {
        bench
            .peer
            .write_all(&[0, 1, 0, 18, 0, 0])
            .expect("there is room");
    };
    for lose in [closed, runt, giant] {
        let mut bench = Bench::stream();
        bench.offer_rx(BUFFERS, 4, 2048);
        bench.kick_all();
        let interrupts = bench.irq.count();
        lose(&mut bench);
        bench.handlers[0].readable(0).expect("the device goes on");
        assert_eq!((bench.status(), bench.irq.count()), (0, interrupts + 1));
        assert!(!bench.net.set_link(true), "down for good");
        bench.offer_tx(&frame(GUEST, 100), 1);
        bench.kick(TX).expect("the device goes on");
        assert!(bench.queues[TX].pop_used().is_some());
        assert_eq!((bench.stats().tx_drops, bench.stats().link_up), (1, false));
        bench.activate(MERGEABLE);
        bench.kick_all();
        assert_eq!(bench.status(), 0, "for the next driver too");
    }
}

#[test]
fn a_write_to_a_lost_peer_is_noticed() {
    let mut bench = Bench::stream();
    bench.kick_all();
    bench.peer.shutdown(std::net::Shutdown::Both).expect("open");
    bench.offer_tx(&frame(GUEST, 100), 1);
    bench.kick(TX).expect("the device goes on");
    assert_eq!((bench.status(), bench.stats().tx_errors), (0, 1));
}

#[test]
fn a_link_that_is_down_drops_both_ways() {
    let mut bench = Bench::stream();
    bench.offer_rx(BUFFERS, 4, 2048);
    bench.kick_all();
    assert!(bench.net.set_link(false));
    bench.send(&frame(PEER, 100));
    bench.offer_tx(&frame(GUEST, 100), 1);
    bench.kick_all();
    assert!(bench.received().is_empty());
    assert_eq!((bench.stats().rx_drops, bench.stats().tx_drops), (1, 1));
    assert!(bench.net.set_link(true));
    bench.send(&frame(PEER, 200));
    bench.handlers[0].readable(0).expect("good buffers");
    assert_eq!(bench.delivered(), Some(frame(PEER, 200)));
}

/// On a worker thread: a peer that reads slowly gets all that the guest has put in its ring.
#[test]
fn the_worker_waits_for_room_without_being_asked() {
    let mut bench = Bench::stream();
    let sent = frame(GUEST, 60_000);
    for _ in 0..100 {
        bench.offer_tx(&sent, 2);
    }
    bench.handlers.clear();
    let queues = bench.queues.iter().enumerate().map(|(index, queue)| {
        let kick = Arc::new(crate::virtio::testing::event_fd());
        queue.device_side(index as u16, kick, bench.irq.clone())
    });
    let activation = Activation {
        features: 1 << VIRTIO_NET_F_MRG_RXBUF | 1 << 32,
        queues: queues.collect(),
        resumed: false,
        config_irq: bench.irq.clone(),
    };
    let handler = bench
        .net
        .activate(activation)
        .expect("the driver is right")
        .remove(0);
    let failed = Box::new(|error| panic!("{error}"));
    let worker = Worker::spawn(
        "net",
        crate::thread::ThreadRole::Device("net"),
        handler,
        Arc::new(|_| Ok(())),
        failed,
    )
    .expect("a worker");
    wait_for("a full socket", || bench.stats().tx_packets > 0);
    bench.peer.set_nonblocking(false).expect("our own");
    let mut bytes = vec![0; 100 * (4 + sent.len())];
    bench.peer.read_exact(&mut bytes).expect("all frames");
    assert!(bytes == prefixed(&sent).repeat(100), "what came differs");
    worker.stop();
    assert_eq!(bench.stats().tx_packets, 100);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the bytes of the stream are cut, the frames are the same.
    #[test]
    fn frames_are_put_together(
        lens in prop::collection::vec(14usize..1900, 1..12),
        cuts in prop::collection::vec(1usize..4000, 1..40),
    ) {
        let mut bench = Bench::stream();
        bench.offer_rx(BUFFERS, lens.len() as u64, 2048);
        bench.kick_all();
        let frames: Vec<_> = lens.iter().map(|&len| frame(PEER, len)).collect();
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| prefixed(frame)).collect();
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            let (part, after) = rest.split_at((*cut).min(rest.len()));
            bench.peer.write_all(part).expect("there is room");
            bench.handlers[0].readable(0).expect("good buffers");
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        for frame in frames {
            prop_assert_eq!(bench.delivered(), Some(frame));
        }
    }

    /// Whatever the peer sends, every call returns, and without a panic.
    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let mut bench = Bench::stream();
        bench.offer_rx(BUFFERS, 8, 2048);
        bench.kick_all();
        bench.peer.write_all(&bytes).expect("there is room");
        bench.handlers[0].readable(0).expect("the device goes on");
    }
}
