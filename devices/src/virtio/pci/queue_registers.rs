//! The registers of one virtqueue (virtio 1.2, 4.1.4.3): a `virtio_queue::Queue`, and the addresses
//! that it refuses.

use virtio_queue::{Error, Queue, QueueState, QueueT};
use vm_memory::GuestAddress;

use crate::state::RestoreError;
use crate::state::transport::{FunctionState, QueueRegistersState};
use crate::virtio::queue::{Part, QueueSetupError};

/// Size, addresses and enabling of one queue.
#[derive(Debug)]
pub(super) struct QueueRegisters {
    queue: Queue,
    /// Addresses that break their alignment, by [`Part`]. They read back like others, but the queue
    /// cannot be used.
    refused: [Option<u64>; 3],
}

impl QueueRegisters {
    /// Registers of a queue that may have up to `max_size` entries.
    pub(super) fn new(max_size: u16) -> Result<Self, Error> {
        Ok(Self {
            queue: Queue::new(max_size)?,
            refused: [None; 3],
        })
    }

    pub(super) fn reset(&mut self) {
        self.queue.reset();
        self.refused = [None; 3];
    }

    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The driver chooses a size; one that the queue cannot have is ignored.
    pub(super) fn set_size(&mut self, size: u16) {
        // The driver reads back what holds.
        let _ = self.queue.try_set_size(size);
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.queue.ready()
    }

    pub(super) fn enable(&mut self) {
        self.queue.set_ready(true);
    }

    pub(super) fn set_event_idx(&mut self, negotiated: bool) {
        self.queue.set_event_idx(negotiated);
    }

    pub(super) fn address(&self, part: Part) -> u64 {
        self.refused[part as usize].unwrap_or_else(|| part.address(&self.queue))
    }

    pub(super) fn set_address(&mut self, part: Part, address: u64) {
        let (queue, at) = (&mut self.queue, GuestAddress(address));
        let set = match part {
            Part::Descriptors => queue.try_set_desc_table_address(at),
            Part::Available => queue.try_set_avail_ring_address(at),
            Part::Used => queue.try_set_used_ring_address(at),
        };
        self.refused[part as usize] = set.is_err().then_some(address);
    }

    /// What a snapshot keeps; `live` is the state of the queue that the device has made of it.
    pub(super) fn save(&self, live: Option<QueueState>) -> QueueRegistersState {
        QueueRegistersState {
            queue: live.unwrap_or_else(|| self.queue.state()),
            refused: self.refused,
        }
    }

    /// Takes over a saved queue, if it is one of the same largest size.
    pub(super) fn restore(&mut self, saved: &QueueRegistersState) -> Result<(), RestoreError> {
        if saved.queue.max_size != self.queue.max_size() {
            let (found, mine) = (saved.queue.max_size, self.queue.max_size());
            let what = format!("a queue of up to {found} entries instead of {mine}");
            return Err(RestoreError::unfit::<FunctionState>(what));
        }
        self.queue = Queue::try_from(saved.queue)
            .map_err(|error| RestoreError::unfit::<FunctionState>(error.to_string()))?;
        self.refused = saved.refused;
        Ok(())
    }

    /// The queue as the driver set it up.
    pub(super) fn state(&self) -> Result<QueueState, QueueSetupError> {
        for part in [Part::Descriptors, Part::Available, Part::Used] {
            if let Some(address) = self.refused[part as usize] {
                return Err(QueueSetupError::Alignment { part, address });
            }
        }
        Ok(self.queue.state())
    }
}
