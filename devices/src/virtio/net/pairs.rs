//! What the queue pairs of a NIC share: the TAP queues, and which of them take part.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::stats::{NetStats, PairCounters};
use super::tap::set_queue_attached;

/// One TAP queue and what belongs to it.
pub(super) struct Pair {
    pub(super) tap: File,
    /// Makes the pair's handler look for work.
    pub(super) wake: EventFd,
    pub(super) counters: PairCounters,
}

/// All queue pairs of a NIC.
///
/// A TAP queue can only be added to an epoll instance while it is attached to the device. So every
/// handler attaches its queue to have it polled, and detaches it at its first chance unless the
/// driver has asked for the pair meanwhile.
pub(super) struct Pairs {
    pairs: Vec<Pair>,
    link_up: AtomicBool,
    /// Pairs in use, the first ones.
    active: AtomicU16,
    /// Which handlers have their TAP queue polled. Held while queues are attached and detached.
    polled: Mutex<Vec<bool>>,
}

impl Pairs {
    pub(super) fn new(pairs: Vec<Pair>, link_up: bool) -> Self {
        let polled = vec![false; pairs.len()];
        Self {
            pairs,
            link_up: AtomicBool::new(link_up),
            active: AtomicU16::new(1),
            polled: Mutex::new(polled),
        }
    }

    pub(super) fn get(&self, pair: u16) -> &Pair {
        &self.pairs[usize::from(pair)]
    }

    pub(super) fn link_up(&self) -> bool {
        self.link_up.load(Ordering::Relaxed)
    }

    /// Sets the link state; true if it changed.
    pub(super) fn set_link_up(&self, up: bool) -> bool {
        self.link_up.swap(up, Ordering::Relaxed) != up
    }

    pub(super) fn is_active(&self, pair: u16) -> bool {
        pair < self.active.load(Ordering::Relaxed)
    }

    pub(super) fn stats(&self) -> NetStats {
        let mut total = NetStats::default();
        self.pairs
            .iter()
            .for_each(|pair| pair.counters.add_to(&mut total));
        total
    }

    /// Goes back to one active pair. Only while there are no handlers.
    pub(super) fn reset(&self) {
        self.lock().fill(false);
        self.active.store(1, Ordering::Relaxed);
    }

    /// Attaches a pair's TAP queue so that it can be polled.
    pub(super) fn attach_for_polling(&self, pair: u16) -> io::Result<()> {
        let _polled = self.lock();
        set_queue_attached(&self.get(pair).tap, true)
    }

    /// The pair's TAP queue is polled now; detaches it if the driver does not want it yet.
    pub(super) fn polled(&self, pair: u16) -> io::Result<()> {
        let mut polled = self.lock();
        polled[usize::from(pair)] = true;
        if self.is_active(pair) {
            Ok(())
        } else {
            set_queue_attached(&self.get(pair).tap, false)
        }
    }

    /// Detaches the TAP queues from `first`, which have no handler.
    pub(super) fn detach_from(&self, first: u16) -> io::Result<()> {
        let _polled = self.lock();
        self.pairs
            .iter()
            .skip(usize::from(first))
            .try_for_each(|pair| set_queue_attached(&pair.tap, false))
    }

    /// Makes the first `count` pairs the active ones and wakes their handlers.
    pub(super) fn set_active(&self, count: u16) -> io::Result<()> {
        let polled = self.lock();
        self.active.store(count, Ordering::Relaxed);
        for (index, (pair, polled)) in self.pairs.iter().zip(polled.iter()).enumerate() {
            if *polled {
                set_queue_attached(&pair.tap, index < usize::from(count))?;
                // Fails only if the counter is full; then the handler is awake.
                let _ = pair.wake.write(1);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<bool>> {
        // A list of flags is never half written.
        self.polled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
