//! Address ranges to devices, for port I/O and for MMIO.
//!
//! The maps are built once before the vCPUs run and then only read, so dispatch takes no lock; a
//! device with mutable registers locks itself.

use std::sync::Arc;

use thiserror::Error;

/// A device behind a fixed range of ports or of guest physical addresses.
///
/// Called on vCPU threads. `offset` is relative to the range's base and `data` lies within the
/// range, whatever the guest does. Reads fill `data` in full; unknown registers read as the bus
/// default the device chooses.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes (1, 2, 4 or 8) at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` (1, 2, 4 or 8 bytes) at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range that cannot be added to a [`Bus`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InsertError {
    /// The range is empty or passes the end of the address space.
    #[error("Bus range {base:#x}+{len:#x} is empty or wraps")]
    Range {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The range shares addresses with one that is already there.
    #[error("Bus range {base:#x}+{len:#x} overlaps another device")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
}

struct Entry {
    base: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// A sorted set of disjoint ranges.
#[derive(Default)]
pub struct Bus {
    entries: Vec<Entry>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `device` at `base..base + len`.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), InsertError> {
        let last = len
            .checked_sub(1)
            .and_then(|extent| base.checked_add(extent))
            .ok_or(InsertError::Range { base, len })?;
        let index = self.entries.partition_point(|entry| entry.base < base);
        let clear_before = index == 0 || self.entries[index - 1].last < base;
        let clear_after = self.entries.get(index).is_none_or(|next| last < next.base);
        if !(clear_before && clear_after) {
            return Err(InsertError::Overlap { base, len });
        }
        self.entries.insert(index, Entry { base, last, device });
        Ok(())
    }

    /// Reads from the device at `address`; false if none holds the whole access.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some(entry) => {
                entry.device.read(address - entry.base, data);
                true
            }
            None => false,
        }
    }

    /// Writes to the device at `address`; false if none holds the whole access.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address, data.len()) {
            Some(entry) => {
                entry.device.write(address - entry.base, data);
                true
            }
            None => false,
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<&Entry> {
        let index = self.entries.partition_point(|entry| entry.base <= address);
        let entry = self.entries.get(index.checked_sub(1)?)?;
        let last = address.checked_add(u64::try_from(len).ok()?.checked_sub(1)?)?;
        (last <= entry.last).then_some(entry)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, usize)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            self.0.lock().expect("test").push((offset, data.len()));
            data.fill(0x5a);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().expect("test").push((offset, data.len()));
        }
    }

    #[test]
    fn dispatches_by_range_and_refuses_accesses_that_cross_an_end() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::new();
        bus.insert(0x100, 8, device.clone()).expect("free range");
        let mut data = [0; 4];
        assert!(bus.read(0x104, &mut data));
        assert_eq!(data, [0x5a; 4]);
        assert!(!bus.read(0x106, &mut data), "crosses the end");
        assert!(!bus.read(0xfe, &mut data), "starts before");
        assert!(!bus.write(0x108, &[0]));
        assert!(!bus.read(u64::MAX, &mut data), "wraps");
        assert!(!bus.read(0x100, &mut []));
        assert_eq!(*device.0.lock().expect("test"), [(4, 4)]);
    }

    #[test]
    fn refuses_overlaps_and_empty_ranges() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::new();
        bus.insert(0x100, 8, device.clone()).expect("free range");
        for (base, len) in [(0x100, 1), (0xff, 2), (0x107, 4), (0x80, 0x200)] {
            assert_eq!(
                bus.insert(base, len, device.clone()),
                Err(InsertError::Overlap { base, len })
            );
        }
        bus.insert(0x108, 1, device.clone())
            .expect("adjacent after");
        bus.insert(0xff, 1, device.clone())
            .expect("adjacent before");
        assert!(bus.insert(0, 0, device.clone()).is_err());
        assert!(bus.insert(u64::MAX, 2, device).is_err());
    }
}
