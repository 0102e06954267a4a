//! A NIC that takes the place of another on the same TAP.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
};
use vm_memory::{Bytes, GuestAddress};

use super::harness::*;
use crate::pci::PciFunction;
use crate::state::conformance::{Script, goes_on_after_restore};
use crate::tap::HEADER_SIZE;
use crate::virtio::VirtioDevice;
use crate::virtio::net::Backend;
use crate::virtio::testing::driven::{self, Driven};
use crate::virtio::testing::{Buffer, wait_for};

const FEATURES: &[u32] = &[
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF,
];
const CONTROL: usize = 4;
const RX_LEN: u32 = 2048;

/// A guest that talks to the network, and changes its mind on queue pairs and offloads.
struct Talker {
    driven: Driven,
    peer: Peer,
    /// Buffers offered to each pair.
    offered: [u64; 2],
}

impl Talker {
    fn command(&mut self, command: &[u8]) -> u8 {
        let (at, ack) = (driven::HEAP, driven::HEAP + 100);
        self.put(at, command);
        self.put(ack, &[7]);
        let len = command.len() as u32;
        let buffers = [Buffer::readable(at, len), Buffer::writable(ack, 1)];
        self.driven.serve(CONTROL, &buffers);
        self.get(ack, 1)[0]
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        let memory = &self.driven.memory;
        memory
            .write_slice(bytes, GuestAddress(at))
            .expect("in memory");
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let memory = &self.driven.memory;
        memory
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("in memory");
        bytes
    }

    fn send(&mut self, len: usize) -> Vec<u8> {
        let at = driven::HEAP + 0x1000;
        let packet = [&[0; HEADER_SIZE][..], &frame(GUEST, len)].concat();
        self.put(at, &packet);
        self.driven
            .serve(TX, &[Buffer::readable(at, packet.len() as u32)]);
        let mut sent = None;
        wait_for("the frame", || {
            sent = self.peer.receive();
            sent.is_some()
        });
        sent.expect("waited for")
    }

    /// Receives a frame, by the pair that the kernel chooses, and offers another buffer there.
    fn receive(&mut self, len: usize) -> (u32, Vec<u8>) {
        self.peer.send(&frame(PEER, len));
        let mut used = None;
        wait_for("the frame", || {
            let mut pairs = (0..2).map(|pair| (pair, self.driven.queues[2 * pair].pop_used()));
            used = pairs.find_map(|(pair, used)| Some((pair, used?)));
            used.is_some()
        });
        let (pair, (_, written)) = used.expect("waited for");
        let at = self.buffer(pair, self.offered[pair] - BUFFERS);
        let seen = self.get(at + HEADER_SIZE as u64, len);
        self.offer(pair);
        (written, seen)
    }

    fn offer(&mut self, pair: usize) {
        let at = self.buffer(pair, self.offered[pair]);
        self.offered[pair] += 1;
        self.driven.offer(2 * pair, &[Buffer::writable(at, RX_LEN)]);
    }

    fn buffer(&self, pair: usize, number: u64) -> u64 {
        driven::HEAP + 0x1_0000 + u64::from(RX_LEN) * (64 * pair as u64 + number % 64)
    }
}

const BUFFERS: u64 = 8;

impl Script for Talker {
    type Seen = (u32, Vec<u8>);
    const STEPS: usize = 10;

    fn new() -> Option<Self> {
        let taps = taps(2)?;
        let peer = Peer::new("tap0");
        let make = move || {
            let taps = taps
                .iter()
                .map(|tap| tap.try_clone().expect("a descriptor"));
            let backend = Backend::Taps(taps.collect());
            // Without answers of its own.
            let mut spec = spec(backend);
            spec.options.lease = None;
            spec.options.lease6 = None;
            Box::new(spec.build().expect("a NIC")) as Box<dyn VirtioDevice>
        };
        let features = FEATURES.iter().fold(0, |all, &bit| all | 1 << bit);
        let mut talker = Self {
            driven: Driven::new(make, features),
            peer,
            offered: [0; 2],
        };
        for pair in [0, 1] {
            (0..BUFFERS).for_each(|_| talker.offer(pair));
        }
        Some(talker)
    }

    fn step(&mut self, step: usize) -> Self::Seen {
        let offloads = |bits: u64| [&[5, 0][..], &bits.to_le_bytes()].concat();
        match step {
            // What comes before the device has started is of no interest to it.
            0 | 4 | 8 => (0, self.send(200 + step)),
            1 | 5 | 9 => self.receive(100 + step),
            2 => (self.command(&[4, 0, 2, 0]).into(), Vec::new()),
            3 => (
                self.command(&offloads(1 << VIRTIO_NET_F_GUEST_CSUM)).into(),
                Vec::new(),
            ),
            6 => (self.command(&offloads(1 << 63)).into(), Vec::new()),
            _ => {
                self.driven.function.pause();
                let saved = self.driven.function.save().expect("paused");
                self.driven.function.resume();
                let text = serde_json::to_string(&saved).expect("plain data");
                let net = text.split_once("\"device\":").expect("a part").1;
                (0, net.as_bytes().to_vec())
            }
        }
    }

    fn replace(&mut self) {
        self.driven.replace();
    }
}

goes_on_after_restore!(goes_on_where_another_nic_stopped, Talker);
