//! What the queue pairs of a NIC share: the ports, and which of them take part.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use super::port::Port;
use super::state::NetState;
use super::stats::{NetStats, PairCounters};
use crate::wake::Wake;

/// One port and what belongs to it.
pub(super) struct Pair {
    pub(super) port: Port,
    /// Makes the pair's handler look for work.
    pub(super) wake: Wake,
    pub(super) counters: PairCounters,
}

/// All queue pairs of a NIC.
pub(super) struct Pairs {
    pairs: Vec<Pair>,
    link_up: AtomicBool,
    /// Pairs in use, the first ones.
    active: AtomicU16,
    /// `VIRTIO_NET_F_GUEST_…` that the guest takes at the moment.
    offloads: AtomicU64,
}

impl Pairs {
    pub(super) fn new(pairs: Vec<Pair>, link_up: bool) -> Self {
        Self {
            pairs,
            link_up: AtomicBool::new(link_up),
            active: AtomicU16::new(1),
            offloads: AtomicU64::new(0),
        }
    }

    pub(super) fn get(&self, pair: u16) -> &Pair {
        &self.pairs[usize::from(pair)]
    }

    /// Whether there is a link: it is wanted, and the other side is there.
    pub(super) fn link_up(&self) -> bool {
        let lost = || self.pairs.first().is_some_and(|pair| pair.port.is_lost());
        self.link_up.load(Ordering::Relaxed) && !lost()
    }

    /// Sets the link state; true if it changed for the guest.
    pub(super) fn set_link_up(&self, up: bool) -> bool {
        let before = self.link_up();
        self.link_up.store(up, Ordering::Relaxed);
        self.link_up() != before
    }

    pub(super) fn is_active(&self, pair: u16) -> bool {
        pair < self.active.load(Ordering::Relaxed)
    }

    pub(super) fn stats(&self) -> NetStats {
        let mut total = NetStats {
            link_up: self.link_up(),
            ..NetStats::default()
        };
        self.pairs
            .iter()
            .for_each(|pair| pair.counters.add_to(&mut total));
        total
    }

    /// Sets how many pairs are active, and the guest's offloads. Only while there are no handlers; the
    /// first of them does the same for the TAP queues.
    pub(super) fn prepare(&self, active: u16, offloads: u64) {
        self.active.store(active, Ordering::Relaxed);
        self.set_offloads(offloads);
    }

    /// Pairs in use.
    pub(super) fn active(&self) -> u16 {
        self.active.load(Ordering::Relaxed)
    }

    /// The guest's offloads.
    pub(super) fn offloads(&self) -> u64 {
        self.offloads.load(Ordering::Relaxed)
    }

    /// The guest has chosen other offloads.
    pub(super) fn set_offloads(&self, offloads: u64) {
        self.offloads.store(offloads, Ordering::Relaxed);
    }

    /// What a snapshot keeps.
    pub(super) fn save(&self) -> NetState {
        NetState {
            link_up: self.link_up.load(Ordering::Relaxed),
            active_pairs: self.active(),
            guest_offloads: self.offloads(),
        }
    }

    /// Takes over what was saved; only while there are no handlers.
    pub(super) fn restore(&self, saved: &NetState) {
        self.link_up.store(saved.link_up, Ordering::Relaxed);
        self.prepare(saved.active_pairs, saved.guest_offloads);
    }

    /// Makes the first `count` pairs the active ones and wakes their handlers. Only for the first
    /// pair's handler, so that there is one writer.
    ///
    /// The kernel gives a detached TAP queue no packets and throws away those it has, but lets it be
    /// polled all the same.
    pub(super) fn set_active(&self, count: u16) -> io::Result<()> {
        self.active.store(count, Ordering::Relaxed);
        for (index, pair) in self.pairs.iter().enumerate().skip(1) {
            pair.port.set_attached(index < usize::from(count))?;
            pair.wake.wake();
        }
        Ok(())
    }
}
