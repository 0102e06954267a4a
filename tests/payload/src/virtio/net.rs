//! virtio-net with one queue pair.

use super::queue::{Queue, flag};
use super::{Device, Failure, feature};
use crate::{memmap, phys};

/// Feature bits.
pub mod f {
    #![allow(missing_docs, reason = "the names are those of the specification")]
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const MRG_RXBUF: u64 = 1 << 15;
}

/// Size of `virtio_net_hdr_v1`.
pub const HEADER: u64 = 12;
/// Space for the largest packet in one buffer.
const WHOLE_PACKET: u32 = 68 << 10;
const RX: u16 = 0;
const TX: u16 = 1;

/// A network device.
pub struct Net {
    /// Receive queue.
    pub rx: Queue,
    /// Transmit queue.
    pub tx: Queue,
    /// Its address.
    pub mac: [u8; 6],
    /// What was agreed.
    pub features: u64,
    buffers: u64,
    buffer_len: u32,
}

impl Net {
    /// Starts the device with `buffer_len` bytes for each entry of the receive queue, or as much
    /// as virtio 1.2, 5.1.6.3.1 demands of a driver without mergeable buffers.
    pub fn start(device: &Device, buffer_len: u32) -> Result<Self, Failure> {
        let wanted = f::CSUM | f::GUEST_CSUM | f::MAC | f::GUEST_TSO4 | f::HOST_TSO4 | f::MRG_RXBUF;
        let features = device.negotiate(wanted | feature::EVENT_IDX)?;
        let buffer_len = match features & (f::MRG_RXBUF | f::GUEST_TSO4) {
            f::GUEST_TSO4 => buffer_len.max(WHOLE_PACKET),
            _ => buffer_len,
        };
        let rx = device.queue(RX, 256, features)?;
        let tx = device.queue(TX, 256, features)?;
        device.driver_ok();
        let mut net = Self {
            buffers: memmap::allocate(u64::from(buffer_len) * u64::from(rx.size), 4096),
            mac: core::array::from_fn(|i| device.config8(i as u64)),
            rx,
            tx,
            features,
            buffer_len,
        };
        for slot in 0..net.rx.size {
            net.recycle(slot);
        }
        net.rx.publish();
        Ok(net)
    }

    /// Gives a receive buffer back.
    pub fn recycle(&mut self, slot: u16) {
        let addr = self.buffer(slot);
        self.rx
            .describe(slot, addr, self.buffer_len, flag::WRITE, 0);
        self.rx.offer(slot);
    }

    /// A receive buffer: header, then frame.
    pub fn buffer(&self, slot: u16) -> u64 {
        self.buffers + u64::from(self.buffer_len) * u64::from(slot)
    }

    /// Sends what is at `addr` (header and frame) from a free slot; `publish` shows it.
    pub fn send(&mut self, slot: u16, addr: u64, len: u32) {
        self.tx.describe(slot, addr, len, 0, 0);
        self.tx.offer(slot);
    }

    /// Builds a frame behind an empty header, zero-filled to `len`, and returns where.
    pub fn frame(&self, to: [u8; 6], ethertype: u16, payload: &[u8], len: u64) -> u64 {
        let at = memmap::allocate(HEADER + len, 64);
        phys::copy_in(at + HEADER, &to);
        phys::copy_in(at + HEADER + 6, &self.mac);
        phys::copy_in(at + HEADER + 12, &ethertype.to_be_bytes());
        phys::copy_in(at + HEADER + 14, payload);
        at
    }
}
