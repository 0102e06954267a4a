//! The face of one PCI function towards the root bus that the machine owns.

pub(crate) mod msix;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::state::{RestoreError, SaveError, Saved};

/// Size of a function's extended configuration space (PCI Express 3.0, 7.2.2), bytes.
pub const CONFIG_SPACE_SIZE: u16 = 4096;

/// BARs that a function may have (PCI 3.0, 6.2.5.1).
pub const BARS: usize = 6;

/// Where each memory BAR of a function is decoded now. The bus has these for each slot.
pub type BarAddresses = [BarAddress; BARS];

/// Where a memory BAR is decoded now. Written by the function when the guest moves the BAR or toggles memory
/// decoding, read by the bus on each MMIO exit without a lock.
#[derive(Debug, Default)]
pub struct BarAddress(AtomicU64);

impl BarAddress {
    /// The guest physical base, or `None` while memory decoding is off.
    pub fn get(&self) -> Option<u64> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            base => Some(base),
        }
    }

    /// Sets the base; `None` turns decoding off.
    pub fn set(&self, base: Option<u64>) {
        self.0.store(base.unwrap_or(0), Ordering::Release);
    }
}

/// One single-function PCI device with memory BARs.
///
/// The bus calls it from vCPU threads, one call at a time (it holds the function's lock).
pub trait PciFunction: Send {
    /// Fills `data` from configuration space. `offset + data.len() <= CONFIG_SPACE_SIZE` and the
    /// access (1, 2 or 4 bytes) does not cross a dword.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);

    /// Writes `data` to configuration space; bounds as for [`PciFunction::config_read`].
    fn config_write(&mut self, offset: u16, data: &[u8]);

    /// Size of BAR number `bar`, bytes, a power of two and at least 16; 0 where there is none.
    fn bar_size(&self, bar: usize) -> u64;

    /// Whether it is to lie above 4 GiB, where there is room for large ones.
    fn is_high(&self, _bar: usize) -> bool {
        false
    }

    /// Gives a BAR its first address (what firmware would do); decoding stays off until the
    /// guest sets the command register's memory bit. From now on the function says in `decoded` where
    /// that is.
    fn assign_bar(&mut self, bar: usize, base: u64, decoded: &Arc<BarAddresses>);

    /// Fills `data` from a BAR; `offset + data.len() <= bar_size(bar)`.
    fn bar_read(&mut self, bar: usize, offset: u64, data: &mut [u8]);

    /// Writes `data` to a BAR; bounds as for [`PciFunction::bar_read`].
    fn bar_write(&mut self, bar: usize, offset: u64, data: &[u8]);

    /// Stops the device's workers after the requests in flight are done. The device keeps its
    /// state; [`PciFunction::resume`] goes on where it stopped. Used while the VM is paused.
    fn pause(&mut self);

    /// Undoes [`PciFunction::pause`].
    fn resume(&mut self);

    /// The function's state. Only while it is paused; it goes on after [`PciFunction::resume`] as if
    /// nothing had been.
    fn save(&self) -> Result<Saved, SaveError>;

    /// Takes over the state of a function that was made in the same way. Only for a new function,
    /// before a guest runs, when guest memory and interrupt controllers are as they were saved (a
    /// pending message is sent at once). It is paused afterwards: [`PciFunction::resume`] starts the
    /// device where the guest used it. After an error the function must not be used.
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError>;

    /// Ends the workers for good (before the machine is torn down or rebuilt); waits for requests
    /// in flight.
    fn shutdown(&mut self);
}
