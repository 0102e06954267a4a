//! The memory of one split virtqueue (virtio 1.2, 2.7): checked once, then read and written with
//! single atomic accesses.
//!
//! `virtio_queue::Queue` is not used: it publishes each used element on its own (a mergeable
//! receive buffer needs several to appear at once), ignores `VIRTQ_AVAIL_F_NO_INTERRUPT`, ends its
//! iterator silently on a malformed chain, and looks the memory region up for every access.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use thiserror::Error;
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::GuestMemory;

/// Bytes of one descriptor (2.7.5).
pub(super) const DESCRIPTOR_SIZE: usize = 16;
/// Bytes of `flags` and `idx` before the ring of either side.
const HEADER_SIZE: usize = 4;
const AVAIL_ELEMENT_SIZE: usize = 2;
const USED_ELEMENT_SIZE: usize = 8;
/// Bytes of `used_event` or `avail_event` after the ring.
const EVENT_SIZE: usize = 2;

const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// Where the driver put a queue, and how it is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLayout {
    /// Entries, a power of two up to 32768.
    pub size: u16,
    /// Descriptor table, 16-byte aligned.
    pub descriptors: GuestAddress,
    /// Available ring ("driver area"), 2-byte aligned.
    pub avail: GuestAddress,
    /// Used ring ("device area"), 4-byte aligned.
    pub used: GuestAddress,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}

/// A queue that cannot be used as the driver described it.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum QueueLayoutError {
    /// Not a power of two up to 32768.
    #[error("Queue size {0} is not a power of two up to 32768")]
    Size(u16),
    /// A part's address breaks its alignment.
    #[error("Queue {part} at {address:#x} is not aligned")]
    Alignment {
        /// Which part.
        part: &'static str,
        /// Its guest physical address.
        address: u64,
    },
    /// A part is not inside one region of guest memory.
    #[error("Queue {part} at {address:#x} is not in guest memory")]
    Memory {
        /// Which part.
        part: &'static str,
        /// Its guest physical address.
        address: u64,
    },
}

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
    fn map(
        memory: &Arc<GuestMemory>,
        part: &'static str,
        address: GuestAddress,
        len: usize,
        align: u64,
    ) -> Result<Self, QueueLayoutError> {
        if !address.0.is_multiple_of(align) {
            return Err(QueueLayoutError::Alignment {
                part,
                address: address.0,
            });
        }
        let slice = memory
            .get_slice(address, len)
            .map_err(|_| QueueLayoutError::Memory {
                part,
                address: address.0,
            })?;
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
    pub(super) fn map(
        memory: &Arc<GuestMemory>,
        layout: &QueueLayout,
    ) -> Result<Self, QueueLayoutError> {
        let size = layout.size;
        if !size.is_power_of_two() {
            return Err(QueueLayoutError::Size(size));
        }
        let entries = usize::from(size);
        let ring_size = |element| HEADER_SIZE + element * entries + EVENT_SIZE;
        let table_size = DESCRIPTOR_SIZE * entries;
        let avail_size = ring_size(AVAIL_ELEMENT_SIZE);
        let used_size = ring_size(USED_ELEMENT_SIZE);
        Ok(Self {
            size,
            descriptors: Area::map(
                memory,
                "descriptor table",
                layout.descriptors,
                table_size,
                16,
            )?,
            avail: Area::map(memory, "available ring", layout.avail, avail_size, 2)?,
            used: Area::map(memory, "used ring", layout.used, used_size, 4)?,
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
