//! A queue as the driver set it up, and why it cannot be used so.

use std::fmt;

use thiserror::Error;
use virtio_queue::{Queue, QueueState, QueueT};

use crate::virtio::split_ring::{
    AVAIL_ELEMENT_SIZE, DESCRIPTOR_SIZE, EVENT_SIZE, HEADER_SIZE, USED_ELEMENT_SIZE,
};

/// One of the three parts of a split virtqueue (virtio 1.2, 2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The descriptor table (2.7.5).
    Descriptors,
    /// The available ring or "driver area" (2.7.6).
    Available,
    /// The used ring or "device area" (2.7.8).
    Used,
}

impl Part {
    /// Its guest physical address.
    pub(in crate::virtio) fn address(self, queue: &Queue) -> u64 {
        match self {
            Self::Descriptors => queue.desc_table(),
            Self::Available => queue.avail_ring(),
            Self::Used => queue.used_ring(),
        }
    }

    /// Its bytes in a queue of `size` entries.
    pub(in crate::virtio) fn len(self, size: u16) -> usize {
        let entries = usize::from(size);
        match self {
            Self::Descriptors => DESCRIPTOR_SIZE * entries,
            Self::Available => HEADER_SIZE + AVAIL_ELEMENT_SIZE * entries + EVENT_SIZE,
            Self::Used => HEADER_SIZE + USED_ELEMENT_SIZE * entries + EVENT_SIZE,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "descriptor table",
            Self::Available => "available ring",
            Self::Used => "used ring",
        })
    }
}

/// What a [`super::VirtQueue`] is made of: from the registers at `DRIVER_OK`, or from a saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Size, addresses and indices.
    pub state: QueueState,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}

impl QueueSetup {
    /// The queue, if what is said of it can be.
    pub(super) fn queue(&self) -> Result<Queue, QueueSetupError> {
        let queue = Queue::try_from(self.state).map_err(QueueSetupError::Configuration)?;
        match queue.ready() {
            true => Ok(queue),
            false => Err(QueueSetupError::NotEnabled),
        }
    }
}

/// A queue that cannot be used as it is set up.
#[derive(Debug, Error)]
pub enum QueueSetupError {
    /// A size that is not a power of two up to the queue's largest, or an address that is not
    /// aligned.
    #[error("Queue is set up against the rules")]
    Configuration(#[source] virtio_queue::Error),
    /// A part's address breaks its alignment.
    #[error("Queue {part} at {address:#x} is not aligned")]
    Alignment {
        /// Which part.
        part: Part,
        /// Its guest physical address.
        address: u64,
    },
    /// The driver did not enable it.
    #[error("Queue is not enabled")]
    NotEnabled,
    /// A part is not inside one region of guest memory.
    #[error("Queue {part} at {address:#x} is not in guest memory")]
    Memory {
        /// Which part.
        part: Part,
        /// Its guest physical address.
        address: u64,
    },
}
