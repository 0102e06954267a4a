//! A NIC whose packets are written down.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::harness::*;
use crate::tap::HEADER_SIZE;
use crate::virtio::VirtioDevice;
use crate::virtio::net::capture::Direction::{self, Received, Sent};
use crate::virtio::net::capture::{Capture, pcapng};
use crate::virtio::net::{Backend, INFO};

const RX_BUFFERS: u64 = HEAP + (1 << 17);

/// A NIC with files for its packets, and the first of them; `None` where the test may be left out.
fn bench(directory: &tempfile::TempDir) -> Option<(Bench, PathBuf)> {
    let paths = ["a", "b"].map(|name| directory.path().join(name));
    let open = |path: &PathBuf| File::options().append(true).create(true).open(path);
    let files = paths.each_ref().map(|path| open(path).expect("a file"));
    let taps = taps(1)?;
    let mut descriptors: Vec<OwnedFd> = files.map(OwnedFd::from).into();
    let capture = Capture::take("default", &mut descriptors, 1).expect("files");
    let mut spec = spec(Backend::Taps(taps));
    spec.capture = Some(Arc::new(capture));
    let bench = Bench::with(spec, Peer::new("tap0"), &[VIRTIO_NET_F_MRG_RXBUF]);
    assert_ne!(bench.net.info().seccomp_role, INFO.seccomp_role);
    let [path, _] = paths;
    Some((bench, path))
}

#[test]
fn what_becomes_of_each_packet_is_written_beside_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some((mut bench, path)) = bench(&directory) else {
        return;
    };
    bench.offer_rx(RX_BUFFERS, 3, 2048);
    bench.kick_all();
    let discover = dhcp_discover();
    let mut spoofed = frame(GUEST, 60);
    spoofed[11] ^= 1;
    let large = frame(GUEST, 1400);
    for frame in [&discover, &spoofed, &large] {
        bench.offer_tx(frame, 3);
        bench.kick(TX).expect("a good chain");
        assert!(bench.queues[TX].pop_used().is_some());
    }
    let coming = frame(PEER, 700);
    bench.peer.send(&coming);
    bench.handlers[0].readable(0).expect("good buffers");
    bench.net.set_link(false);
    bench.offer_tx(&large, 2);
    bench.kick(TX).expect("a good chain");
    bench.peer.send(&coming);
    bench.handlers[0].readable(0).expect("good buffers");

    // What the guest has got is what was written down.
    let mut received = Vec::new();
    while let Some((head, len)) = bench.queues[RX].pop_used() {
        let packet = bench.read(RX_BUFFERS + 2048 * u64::from(head), len as usize);
        received.push(packet[HEADER_SIZE..].to_vec());
    }
    let [offer, passed] = <[_; 2]>::try_from(received).expect("an answer and a frame");
    assert_eq!(passed, coming);
    let packets = pcapng::read(&fs::read(&path).expect("a capture"));
    let expected: [(Direction, Vec<u8>, &str); 7] = [
        (Sent, discover, "answered by podvisor: DHCPv4"),
        (Received, offer, "made by podvisor: DHCPv4"),
        (
            Sent,
            spoofed,
            "dropped: the sender's address is not the NIC's",
        ),
        (Sent, large.clone(), ""),
        (Received, coming.clone(), ""),
        (Sent, large, "dropped: the link is down"),
        (Received, coming, "dropped: the link is down"),
    ];
    let expected =
        expected.map(|(direction, frame, comment)| (direction, frame, comment.to_owned()));
    assert_eq!(packets, expected);
}
