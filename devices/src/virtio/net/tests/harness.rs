//! A NIC, a driver and a peer on the other side of the TAP.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;
use crate::tap::HEADER_SIZE;
pub(super) use crate::virtio::net::testing::*;
use crate::virtio::net::{Backend, Net, NetSpec, NetStats};
use crate::virtio::testing::{Buffer, FakeIrq, GuestQueue, event_fd, guest_memory};
use crate::virtio::{Activation, QueueError, QueueHandler, VirtioDevice};

/// An ethertype for experiments: the kernel leaves it alone.
pub(super) const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
pub(super) const QUEUE_SIZE: u16 = 256;
const RAM: usize = 16 << 20;
const QUEUES: u64 = 0;
/// Buffers for tests, after the queues.
pub(super) const HEAP: u64 = 1 << 20;
const VERSION_1: u64 = 1 << 32;

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;

/// A frame from `from` to the other, `len` bytes long.
pub(super) fn frame(from: [u8; 6], len: usize) -> Vec<u8> {
    let to = if from == GUEST { PEER } else { GUEST };
    let mut frame = [&to[..], &from[..], &ETHERTYPE[..]].concat();
    frame.extend((14..len).map(|at| at as u8));
    frame
}

/// A NIC with an active driver, driven by hand: no worker threads.
pub(super) struct Bench<P = Peer> {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) net: Net,
    pub(super) handlers: Vec<Box<dyn QueueHandler>>,
    pub(super) queues: Vec<GuestQueue>,
    pub(super) irq: Arc<FakeIrq>,
    pub(super) peer: P,
}

impl Bench {
    /// A NIC with `pairs` queue pairs, or `None` where the test may be left out.
    #[track_caller]
    pub(super) fn new(pairs: u16, features: &[u32]) -> Option<Self> {
        let taps = taps(pairs)?;
        let peer = Peer::new("tap0");
        Some(Self::with(spec(Backend::Taps(taps)), peer, features))
    }
}

impl<P> Bench<P> {
    /// A NIC with an active driver.
    pub(super) fn with(spec: NetSpec, peer: P, features: &[u32]) -> Self {
        let net = spec.build().expect("a NIC");
        let memory = guest_memory(&[(0, RAM)]);
        let irq = Arc::new(FakeIrq::default());
        let mut bench = Self {
            memory,
            net,
            handlers: Vec::new(),
            queues: Vec::new(),
            irq,
            peer,
        };
        bench.activate(features);
        bench
    }

    pub(super) fn activate(&mut self, features: &[u32]) {
        let features = features.iter().fold(VERSION_1, |all, &bit| all | 1 << bit);
        let count = self.net.queue_sizes().len() as u64;
        let bytes = GuestQueue::bytes(QUEUE_SIZE);
        assert!(QUEUES + count * bytes <= HEAP);
        self.handlers.clear();
        self.queues = (0..count)
            .map(|index| GuestQueue::new(&self.memory, QUEUES + index * bytes, QUEUE_SIZE))
            .collect();
        let device_side = |(index, queue): (usize, &GuestQueue)| {
            queue.device_side(index as u16, Arc::new(event_fd()), self.irq.clone())
        };
        let queues = self.queues.iter().enumerate().map(device_side).collect();
        let activation = Activation {
            features,
            queues,
            resumed: false,
            config_irq: self.irq.clone(),
        };
        self.handlers = self.net.activate(activation).expect("the driver is right");
        for (pair, handler) in self.handlers.iter().enumerate() {
            // TAP and eventfd; the first pair has the timer of advertisements.
            assert_eq!(handler.fds().len(), if pair == 0 { 3 } else { 2 });
        }
    }

    pub(super) fn kick(&mut self, position: usize) -> Result<(), QueueError> {
        self.handlers[0].kicked(position)
    }

    pub(super) fn kick_all(&mut self) {
        for handler in &mut self.handlers {
            for position in 0..handler.queues().len() {
                handler.kicked(position).expect("the driver is right");
            }
        }
    }

    pub(super) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory
            .read_slice(&mut data, GuestAddress(address))
            .expect("in memory");
        data
    }

    pub(super) fn write(&self, address: u64, data: &[u8]) {
        self.memory
            .write_slice(data, GuestAddress(address))
            .expect("in memory");
    }

    pub(super) fn stats(&self) -> NetStats {
        serde_json::from_value(self.net.stats()).expect("a NIC")
    }

    /// Offers `count` receive buffers of `len` bytes, one after the other from `base`.
    pub(super) fn offer_rx(&mut self, base: u64, count: u64, len: u32) {
        for index in 0..count {
            let address = base + index * u64::from(len);
            self.queues[RX].add(&[Buffer::writable(address, len)]);
        }
    }

    /// Offers a packet for sending, header and frame in `parts` descriptors.
    pub(super) fn offer_tx(&mut self, frame: &[u8], parts: usize) {
        let packet = [&[0; HEADER_SIZE][..], frame].concat();
        self.write(HEAP, &packet);
        let part = packet.len().div_ceil(parts);
        let buffers: Vec<_> = (0..packet.len())
            .step_by(part)
            .map(|at| Buffer::readable(HEAP + at as u64, part.min(packet.len() - at) as u32))
            .collect();
        self.queues[TX].add(&buffers);
    }
}
