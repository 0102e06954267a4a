//! The device side of one virtqueue: take chains, give them back, suppress kicks and interrupts.
//!
//! Owned by a handler on a worker thread while the driver uses the device. Nothing here allocates,
//! locks or logs after [`VirtQueue::new`].
//!
//! `virtio_queue::Queue` holds what the driver configured and how far the device has come; what is
//! done with the memory is ours (docs/adr/0101-virtio-queue.md).

#[cfg(test)]
mod compared;
mod setup;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

pub use virtio_queue::QueueState;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

pub use self::setup::{Part, QueueSetup, QueueSetupError};
use crate::GuestMemory;
use crate::irq::Irq;
use crate::virtio::QueueError;
use crate::virtio::chain::Chain;
use crate::virtio::split_ring::SplitRing;

/// A virtqueue that the driver enabled.
///
/// ```text
/// loop {
///     queue.disable_kicks();
///     while queue.next(&mut chain)? { …; queue.push_used(chain.head(), written); }
///     queue.notify();
///     if !queue.enable_kicks() { break }
/// }
/// ```
pub struct VirtQueue {
    index: u16,
    /// Configuration, the next available entry to take, and the next used entry to write.
    queue: Queue,
    ring: SplitRing,
    indirect: bool,
    memory: Arc<GuestMemory>,
    kick: Arc<EventFd>,
    irq: Arc<dyn Irq>,
    /// The driver's available index as last seen; entries before it may be taken.
    seen_avail: u16,
    /// Used index that the driver can see.
    published: u16,
    /// Used index at the last decision about an interrupt.
    signalled: u16,
}

impl VirtQueue {
    /// Checks and maps the queue that the driver set up, to go on where `setup` says. `index` is its
    /// number in the device, `kick` is signalled by the driver's doorbell and `irq` tells the driver
    /// about used buffers.
    pub fn new(
        index: u16,
        setup: &QueueSetup,
        memory: Arc<GuestMemory>,
        kick: Arc<EventFd>,
        irq: Arc<dyn Irq>,
    ) -> Result<Self, QueueSetupError> {
        let queue = setup.queue()?;
        let (next_avail, next_used) = (queue.next_avail(), queue.next_used());
        // A queue that goes on: its driver may not have seen, nor been told of, what was used last.
        let shown = match (next_avail, next_used) {
            (0, 0) => 0,
            _ => next_used.wrapping_sub(queue.size()),
        };
        Ok(Self {
            index,
            ring: SplitRing::map(&memory, &queue)?,
            queue,
            indirect: setup.indirect,
            memory,
            kick,
            irq,
            seen_avail: next_avail,
            published: shown,
            signalled: shown,
        })
    }

    /// Configuration and indices, with which a queue can be made that goes on where this one is. What
    /// was given to [`VirtQueue::push_used`] counts as given back.
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// The queue's number in the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Guest memory that the chains point into.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Signalled when the driver kicks. The worker polls it edge-triggered and never reads it.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// A write to this is the queue's interrupt ([`Irq::event`]).
    pub fn irq_event(&self) -> io::Result<Option<EventFd>> {
        self.irq.event()
    }

    /// Makes the worker call the handler again for this queue, after other events and commands.
    pub fn kick_self(&self) {
        // Fails only if the counter is about to overflow; then the worker is awake anyway.
        let _ = self.kick.write(1);
    }

    /// A chain with room for the longest chain that this queue allows.
    pub fn new_chain(&self) -> Chain {
        Chain::new(usize::from(self.size()), Arc::clone(&self.memory))
    }

    /// Takes the next available chain into `chain`; false if there is none.
    ///
    /// After an error the queue must not be used any more.
    pub fn next(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        let next_avail = self.queue.next_avail();
        if next_avail == self.seen_avail && !self.look()? {
            return Ok(false);
        }
        let head = self.ring.avail_head(next_avail);
        chain
            .walk(
                head,
                self.ring.descriptors(),
                self.ring.size(),
                self.indirect,
            )
            .map_err(|source| QueueError::Malformed {
                queue: self.index,
                source,
            })?;
        self.queue.set_next_avail(next_avail.wrapping_add(1));
        Ok(true)
    }

    /// Gives the last `count` chains taken back to the queue, as if they had never been taken.
    ///
    /// Only for chains that were not completed, newest first: what a receive path does when the
    /// buffers at hand do not hold a packet.
    pub fn undo_next(&mut self, count: u16) {
        let next_avail = self.queue.next_avail();
        self.queue.set_next_avail(next_avail.wrapping_sub(count));
    }

    /// Reads the driver's available index; true if there is something to take.
    fn look(&mut self) -> Result<bool, QueueError> {
        let avail = self.ring.avail_idx(Ordering::Acquire);
        let next = self.queue.next_avail();
        let pending = avail.wrapping_sub(next);
        if pending > self.ring.size() {
            return Err(QueueError::AvailIndex {
                queue: self.index,
                avail,
                next,
            });
        }
        self.seen_avail = avail;
        Ok(pending != 0)
    }

    /// Puts a chain into the used ring without showing it to the driver yet. `written` is the
    /// number of bytes written to its writable part.
    ///
    /// Used with [`VirtQueue::publish`] where several chains must appear at once (mergeable receive
    /// buffers), or to write the index once per batch.
    pub fn push_used(&mut self, head: u16, written: u32) {
        let next_used = self.queue.next_used();
        self.ring.set_used(next_used, head, written);
        self.queue.set_next_used(next_used.wrapping_add(1));
    }

    /// Shows all chains given to [`VirtQueue::push_used`] to the driver, at once.
    pub fn publish(&mut self) {
        let next_used = self.queue.next_used();
        if self.published != next_used {
            self.ring.set_used_idx(next_used);
            self.published = next_used;
        }
    }

    /// Gives one chain back to the driver: [`VirtQueue::push_used`] and [`VirtQueue::publish`].
    pub fn complete(&mut self, head: u16, written: u32) {
        self.push_used(head, written);
        self.publish();
    }

    /// Publishes, and interrupts the driver if it wants that for the chains published since the last
    /// call (2.7.7, 2.7.10).
    pub fn notify(&mut self) {
        self.publish();
        if self.published == self.signalled {
            return;
        }
        // The used index must be visible before the driver's wish is read: the driver writes its
        // wish, then reads the used index.
        fence(Ordering::SeqCst);
        let wanted = if self.queue.event_idx_enabled() {
            passed(self.ring.used_event(), self.signalled, self.published)
        } else {
            !self.ring.interrupts_off()
        };
        self.signalled = self.published;
        if wanted {
            self.irq.raise();
        }
    }

    /// Whether there is something to take.
    pub fn has_available(&self) -> bool {
        self.ring.avail_idx(Ordering::Relaxed) != self.queue.next_avail()
    }

    /// Tells the driver that it need not kick. Kicks may still come.
    pub fn disable_kicks(&mut self) {
        if self.queue.event_idx_enabled() {
            // An event that has passed: the next to come is 65535 chains away.
            let passed = self.queue.next_avail().wrapping_sub(1);
            self.ring.set_avail_event(passed);
        } else {
            self.ring.set_kicks_off(true);
        }
    }

    /// Asks the driver to kick at its next chain. True if chains arrived meanwhile: then no kick
    /// may come for them, and the caller must look again.
    pub fn enable_kicks(&mut self) -> bool {
        if self.queue.event_idx_enabled() {
            self.ring.set_avail_event(self.queue.next_avail());
        } else {
            self.ring.set_kicks_off(false);
        }
        // The wish must be visible before the index is read: the driver writes the index, then
        // reads the wish.
        fence(Ordering::SeqCst);
        self.has_available()
    }
}

/// Whether an index moved from `old` to `new` past `event` (2.7.10, the driver's macro
/// `vring_need_event`).
fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
