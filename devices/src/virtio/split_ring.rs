//! The memory of one split virtqueue (virtio 1.2, 2.7): checked once, then read and written with
//! single atomic accesses. `virtio_queue::Queue` says where it is.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::GuestMemory;
use crate::virtio::queue::{Part, QueueSetupError};

/// Bytes of one descriptor (2.7.5).
pub(super) const DESCRIPTOR_SIZE: usize = 16;
/// Bytes of `flags` and `idx` before the ring of either side.
pub(super) const HEADER_SIZE: usize = 4;
pub(super) const AVAIL_ELEMENT_SIZE: usize = 2;
pub(super) const USED_ELEMENT_SIZE: usize = 8;
/// Bytes of `used_event` or `avail_event` after the ring.
pub(super) const EVENT_SIZE: usize = 2;

const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// A range of guest memory that was checked once and stays mapped.
#[derive(Debug)]
pub(super) struct Area {
    base: *mut u8,
    len: usize,
    /// Keeps the mapping that `base` points into.
    _memory: Arc<GuestMemory>,
}

// SAFETY: `base` points into a shared mapping that lives as long as `_memory`; it is only accessed
// through volatile and atomic operations.
unsafe impl Send for Area {}

impl Area {
    fn map(memory: &Arc<GuestMemory>, part: Part, queue: &Queue) -> Result<Self, QueueSetupError> {
        let (address, len) = (part.address(queue), part.len(queue.size()));
        let slice = memory
            .get_slice(GuestAddress(address), len)
            .map_err(|_| QueueSetupError::Memory { part, address })?;
        let base = slice.ptr_guard_mut().as_ptr();
        Ok(Self {
            base,
            len,
            _memory: Arc::clone(memory),
        })
    }

    fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: `map` got `base..base + len` from `get_slice`, and `_memory` keeps it mapped for
        // at least the lifetime of the slice.
        unsafe { VolatileSlice::new(self.base, self.len) }
    }

    /// Loads an integer; `offset` is aligned and in the area by construction of its callers.
    pub(super) fn load<T: AtomicAccess>(&self, offset: usize, order: Ordering) -> T {
        self.slice()
            .load(offset, order)
            .expect("offset is inside the area and aligned")
    }

    fn store<T: AtomicAccess>(&self, value: T, offset: usize, order: Ordering) {
        self.slice()
            .store(value, offset, order)
            .expect("offset is inside the area and aligned");
    }
}

/// The three parts of a split virtqueue. Indexes wrap modulo 2^16; slots are taken modulo `size`.
#[derive(Debug)]
pub(super) struct SplitRing {
    size: u16,
    descriptors: Area,
    avail: Area,
    used: Area,
}

impl SplitRing {
    /// Maps what `queue` describes. That its parts are aligned and that its size is a power of two
    /// holds of every [`Queue`].
    pub(super) fn map(memory: &Arc<GuestMemory>, queue: &Queue) -> Result<Self, QueueSetupError> {
        Ok(Self {
            size: queue.size(),
            descriptors: Area::map(memory, Part::Descriptors, queue)?,
            avail: Area::map(memory, Part::Available, queue)?,
            used: Area::map(memory, Part::Used, queue)?,
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn descriptors(&self) -> &Area {
        &self.descriptors
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// `avail.idx`.
    pub(super) fn avail_idx(&self, order: Ordering) -> u16 {
        u16::from_le(self.avail.load(2, order))
    }

    /// The head descriptor in the slot of `index`.
    pub(super) fn avail_head(&self, index: u16) -> u16 {
        let offset = HEADER_SIZE + AVAIL_ELEMENT_SIZE * self.slot(index);
        u16::from_le(self.avail.load(offset, Ordering::Relaxed))
    }

    /// `avail.flags & VIRTQ_AVAIL_F_NO_INTERRUPT`.
    pub(super) fn interrupts_off(&self) -> bool {
        u16::from_le(self.avail.load(0, Ordering::Relaxed)) & AVAIL_F_NO_INTERRUPT != 0
    }

    /// `avail.used_event`: interrupt once the used index passes it.
    pub(super) fn used_event(&self) -> u16 {
        let offset = HEADER_SIZE + AVAIL_ELEMENT_SIZE * usize::from(self.size);
        u16::from_le(self.avail.load(offset, Ordering::Relaxed))
    }

    /// Writes the used element in the slot of `index`; not visible to the driver before
    /// [`SplitRing::set_used_idx`].
    pub(super) fn set_used(&self, index: u16, head: u16, written: u32) {
        let offset = HEADER_SIZE + USED_ELEMENT_SIZE * self.slot(index);
        self.used
            .store(u32::from(head).to_le(), offset, Ordering::Relaxed);
        self.used
            .store(written.to_le(), offset + 4, Ordering::Relaxed);
    }

    /// Publishes everything before `index`.
    pub(super) fn set_used_idx(&self, index: u16) {
        self.used.store(index.to_le(), 2, Ordering::Release);
    }

    /// `used.flags`: asks the driver (as a hint) to kick or not.
    pub(super) fn set_kicks_off(&self, off: bool) {
        let flags = if off { USED_F_NO_NOTIFY } else { 0 };
        self.used.store(flags.to_le(), 0, Ordering::Relaxed);
    }

    /// `used.avail_event`: asks the driver to kick once the available index passes `index`.
    pub(super) fn set_avail_event(&self, index: u16) {
        let offset = HEADER_SIZE + USED_ELEMENT_SIZE * usize::from(self.size);
        self.used.store(index.to_le(), offset, Ordering::Relaxed);
    }
}
