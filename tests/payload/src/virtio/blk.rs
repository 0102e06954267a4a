//! virtio-blk requests.

use super::queue::{Queue, flag};
use super::{Device, Failure, feature};
use crate::{memmap, phys};

/// Read.
pub const IN: u32 = 0;
/// Write.
pub const OUT: u32 = 1;
/// Flush.
pub const FLUSH: u32 = 4;

/// Feature: FLUSH is understood.
pub const F_FLUSH: u64 = 1 << 9;

const STATUS_OK: u8 = 0;
const STATUS_UNSET: u8 = 0xaa;
/// Descriptors of a request: header, data, status.
const DESCRIPTORS: u16 = 3;

/// A block device with one queue and fixed request slots.
pub struct Blk {
    /// Its queue.
    pub queue: Queue,
    /// Its size.
    pub sectors: u64,
    /// What was agreed.
    pub features: u64,
    slots: u16,
    headers: u64,
    data: u64,
    data_len: u64,
}

impl Blk {
    /// Starts the device with `slots` requests of up to `data_len` bytes.
    pub fn start(device: &Device, slots: u16, data_len: u64) -> Result<Self, Failure> {
        let features = device.negotiate(feature::EVENT_IDX | F_FLUSH)?;
        let queue = device.queue(0, 256, features)?;
        device.driver_ok();
        let slots = slots.min(queue.size / DESCRIPTORS).max(1);
        Ok(Self {
            queue,
            sectors: device.config64(0),
            features,
            slots,
            headers: memmap::allocate(32 * u64::from(slots), 4096),
            data: memmap::allocate(data_len * u64::from(slots), 4096),
            data_len,
        })
    }

    /// Requests that can be in flight.
    pub fn slots(&self) -> u16 {
        self.slots
    }

    /// Data of a slot.
    pub fn data(&self, slot: u16) -> u64 {
        self.data + self.data_len * u64::from(slot)
    }

    /// Offers a request in a slot that is free. FLUSH has no data.
    pub fn offer(&mut self, slot: u16, kind: u32, sector: u64, len: u32) {
        let header = self.headers + 32 * u64::from(slot);
        phys::w32(header, kind);
        phys::w32(header + 4, 0);
        phys::w64(header + 8, sector);
        phys::w8(header + 16, STATUS_UNSET);
        let first = slot * DESCRIPTORS;
        let writes = if kind == IN { flag::WRITE } else { 0 };
        let status = match kind {
            FLUSH => first + 1,
            _ => {
                let data = self.data(slot);
                self.queue
                    .describe(first + 1, data, len, flag::NEXT | writes, first + 2);
                first + 2
            }
        };
        self.queue
            .describe(first, header, 16, flag::NEXT, first + 1);
        self.queue.describe(status, header + 16, 1, flag::WRITE, 0);
        self.queue.offer(first);
    }

    /// Takes a completion: its slot, and whether the device says that all went well.
    pub fn poll(&mut self) -> Option<(u16, bool)> {
        let (head, _) = self.queue.poll()?;
        let slot = head as u16 / DESCRIPTORS;
        let status = self.headers + 32 * u64::from(slot) + 16;
        Some((slot, slot < self.slots && phys::r8(status) == STATUS_OK))
    }

    /// One request, start to end.
    pub fn request(&mut self, kind: u32, sector: u64, len: u32) -> Result<(), Failure> {
        self.offer(0, kind, sector, len);
        self.queue.publish();
        let (head, _) = self.queue.wait(10_000)?;
        let good = head == 0 && phys::r8(self.headers + 16) == STATUS_OK;
        if good { Ok(()) } else { Err(Failure::Status) }
    }
}
