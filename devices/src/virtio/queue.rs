//! The device side of one virtqueue: take chains, give them back, suppress kicks and interrupts.
//!
//! Owned by a handler on a worker thread while the driver uses the device. Nothing here allocates,
//! locks or logs after [`VirtQueue::new`].

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vmm_sys_util::eventfd::EventFd;

use crate::GuestMemory;
use crate::irq::Irq;
use crate::virtio::QueueError;
use crate::virtio::chain::Chain;
use crate::virtio::ring::SplitRing;
pub use crate::virtio::ring::{QueueLayout, QueueLayoutError};

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
    ring: SplitRing,
    event_idx: bool,
    indirect: bool,
    memory: Arc<GuestMemory>,
    kick: Arc<EventFd>,
    irq: Arc<dyn Irq>,
    /// Next available entry to take.
    next_avail: u16,
    /// The driver's available index as last seen; entries before it may be taken.
    seen_avail: u16,
    /// Next used entry to write.
    next_used: u16,
    /// Used index that the driver can see.
    published: u16,
    /// Used index at the last decision about an interrupt.
    signalled: u16,
}

impl VirtQueue {
    /// Checks and maps the queue that the driver laid out as `layout`. `index` is its number in the
    /// device, `kick` is signalled by the driver's doorbell and `irq` tells the driver about used
    /// buffers.
    pub fn new(
        index: u16,
        layout: &QueueLayout,
        memory: Arc<GuestMemory>,
        kick: Arc<EventFd>,
        irq: Arc<dyn Irq>,
    ) -> Result<Self, QueueLayoutError> {
        Ok(Self {
            index,
            ring: SplitRing::map(&memory, layout)?,
            event_idx: layout.event_idx,
            indirect: layout.indirect,
            memory,
            kick,
            irq,
            next_avail: 0,
            seen_avail: 0,
            next_used: 0,
            published: 0,
            signalled: 0,
        })
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
        if self.next_avail == self.seen_avail && !self.look()? {
            return Ok(false);
        }
        let head = self.ring.avail_head(self.next_avail);
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
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(true)
    }

    /// Gives the last `count` chains taken back to the queue, as if they had never been taken.
    ///
    /// Only for chains that were not completed, newest first: what a receive path does when the
    /// buffers at hand do not hold a packet.
    pub fn undo_next(&mut self, count: u16) {
        self.next_avail = self.next_avail.wrapping_sub(count);
    }

    /// Reads the driver's available index; true if there is something to take.
    fn look(&mut self) -> Result<bool, QueueError> {
        let avail = self.ring.avail_idx(Ordering::Acquire);
        let pending = avail.wrapping_sub(self.next_avail);
        if pending > self.ring.size() {
            return Err(QueueError::AvailIndex {
                queue: self.index,
                avail,
                next: self.next_avail,
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
        self.ring.set_used(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows all chains given to [`VirtQueue::push_used`] to the driver, at once.
    pub fn publish(&mut self) {
        if self.published != self.next_used {
            self.ring.set_used_idx(self.next_used);
            self.published = self.next_used;
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
        let wanted = if self.event_idx {
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
        self.ring.avail_idx(Ordering::Relaxed) != self.next_avail
    }

    /// Tells the driver that it need not kick. Kicks may still come.
    pub fn disable_kicks(&mut self) {
        if self.event_idx {
            // An event that has passed: the next to come is 65535 chains away.
            self.ring.set_avail_event(self.next_avail.wrapping_sub(1));
        } else {
            self.ring.set_kicks_off(true);
        }
    }

    /// Asks the driver to kick at its next chain. True if chains arrived meanwhile: then no kick
    /// may come for them, and the caller must look again.
    pub fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.ring.set_avail_event(self.next_avail);
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
