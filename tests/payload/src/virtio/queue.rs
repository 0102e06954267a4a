//! The driver's side of a split queue. Polled: the device is asked for no interrupts unless
//! the caller sets a vector.

use core::sync::atomic::{Ordering, fence};

use super::Failure;
use crate::{cpu, memmap, phys, time};

/// Descriptor flags.
pub mod flag {
    /// Another descriptor follows.
    pub const NEXT: u16 = 1;
    /// The device writes.
    pub const WRITE: u16 = 2;
    /// A table of descriptors.
    pub const INDIRECT: u16 = 4;
}

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;
/// `VIRTIO_MSI_NO_VECTOR`.
pub const NO_VECTOR: u16 = 0xffff;

/// A queue and where its rings are.
pub struct Queue {
    /// Its number.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
    /// Notification register.
    pub notify: u64,
    /// Width of a notification.
    pub notify_width: u8,
    /// MSI-X vector.
    pub vector: u16,
    event_idx: bool,
    offered: u16,
    published: u16,
    taken: u16,
    kicks: u64,
}

impl Queue {
    pub(super) fn new(index: u16, size: u16, event_idx: bool) -> Self {
        let entries = u64::from(size);
        let mut queue = Self {
            index,
            size,
            desc: memmap::allocate(16 * entries, 4096),
            avail: memmap::allocate(6 + 2 * entries, 4096),
            used: memmap::allocate(6 + 8 * entries, 4096),
            notify: 0,
            notify_width: 2,
            vector: NO_VECTOR,
            event_idx,
            offered: 0,
            published: 0,
            taken: 0,
            kicks: 0,
        };
        queue.clear();
        queue
    }

    /// Back to empty, for use after a reset.
    pub fn clear(&mut self) {
        let entries = u64::from(self.size);
        phys::fill(self.avail, 0, 6 + 2 * entries);
        phys::fill(self.used, 0, 6 + 8 * entries);
        (self.offered, self.published, self.taken) = (0, 0, 0);
        self.interrupts(false);
    }

    /// Asks for interrupts or for none.
    pub fn interrupts(&mut self, on: bool) {
        phys::w16(self.avail, if on { 0 } else { NO_INTERRUPT });
        let event = if on {
            self.taken
        } else {
            self.taken.wrapping_sub(1)
        };
        phys::w16(self.avail + 4 + 2 * u64::from(self.size), event);
    }

    /// Writes a descriptor.
    pub fn describe(&self, slot: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let desc = self.desc + 16 * u64::from(slot);
        phys::w64(desc, addr);
        phys::w32(desc + 8, len);
        phys::w32(desc + 12, u32::from(flags) | u32::from(next) << 16);
    }

    /// Puts a chain into the available ring; the device sees it at the next `publish`.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.size);
        phys::w16(self.avail + 4 + 2 * slot, head);
        self.offered = self.offered.wrapping_add(1);
    }

    /// Shows what was offered and notifies the device if it wants that.
    pub fn publish(&mut self) {
        if self.offered == self.published {
            return;
        }
        let (old, new) = (self.published, self.offered);
        fence(Ordering::Release);
        phys::w16(self.avail + 2, new);
        self.published = new;
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = phys::r16(self.used + 4 + 8 * u64::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            phys::r16(self.used) & NO_NOTIFY == 0
        };
        if wanted {
            self.kick();
        }
    }

    /// Notifies the device.
    pub fn kick(&mut self) {
        self.kicks += 1;
        phys::store(self.notify, self.notify_width, self.index.into());
    }

    /// Notifications so far.
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    /// Takes one completion: head and bytes written.
    pub fn poll(&mut self) -> Option<(u32, u32)> {
        if phys::r16(self.used + 2) == self.taken {
            return None;
        }
        fence(Ordering::Acquire);
        let element = self.used + 4 + 8 * u64::from(self.taken % self.size);
        self.taken = self.taken.wrapping_add(1);
        Some((phys::r32(element), phys::r32(element + 4)))
    }

    /// Waits for a completion.
    pub fn wait(&mut self, ms: u64) -> Result<(u32, u32), Failure> {
        let deadline = cpu::tsc() + time::from_ms(ms);
        loop {
            if let Some(done) = self.poll() {
                return Ok(done);
            }
            if cpu::tsc() > deadline {
                return Err(Failure::Timeout);
            }
            cpu::pause();
        }
    }
}
