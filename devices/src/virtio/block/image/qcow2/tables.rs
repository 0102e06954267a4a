//! L2 tables in memory: a bounded number, looked at without waiting while others are read in.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::entry::{self, Cluster};
use super::header::Header;

/// Most bytes of tables in memory: with clusters of 64 KiB, the tables of 128 GiB.
const MAX_BYTES: u64 = 16 << 20;
const MIN_TABLES: u64 = 4;

/// Not in memory.
const NOWHERE: u32 = u32::MAX;

/// The two levels of tables of one image.
pub(super) struct Tables {
    bits: u32,
    /// Places of L2 tables in the file.
    l1: Box<[AtomicU64]>,
    /// Where in `slots` an L2 table is, by its L1 entry.
    index: Box<[AtomicU32]>,
    slots: Box<[Slot]>,
}

/// Room for a table, which is allocated at its first use.
#[derive(Default)]
struct Slot {
    /// Odd while another table is read in.
    version: AtomicU32,
    entries: OnceLock<Box<[AtomicU64]>>,
}

/// What is known of a cluster without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The table is in memory, or there is none.
    Cluster(Cluster),
    /// The table has to be read.
    Unread,
}

impl Tables {
    /// The tables of an image whose first table, as it is in the file, is `l1`.
    pub(super) fn new(header: &Header, l1: impl Iterator<Item = u64>) -> Self {
        let l1: Box<[_]> = l1.map(AtomicU64::new).collect();
        let slots = (MAX_BYTES >> header.cluster_bits)
            .max(MIN_TABLES)
            .min(l1.len() as u64);
        Self {
            bits: header.cluster_bits,
            index: l1.iter().map(|_| AtomicU32::new(NOWHERE)).collect(),
            slots: (0..slots).map(|_| Slot::default()).collect(),
            l1,
        }
    }

    /// Entries of a table.
    pub(super) fn len(&self) -> usize {
        1 << (self.bits - 3)
    }

    /// Number of tables that fit into memory.
    pub(super) fn room(&self) -> usize {
        self.slots.len()
    }

    /// The numbers of a cluster's entries in both tables.
    pub(super) fn numbers(&self, cluster: u64) -> (usize, usize) {
        let bits = self.bits - 3;
        (
            (cluster >> bits) as usize,
            (cluster & ((1 << bits) - 1)) as usize,
        )
    }

    /// What guest cluster `cluster` is.
    pub(super) fn find(&self, cluster: u64) -> Known {
        let (table, at) = self.numbers(cluster);
        let Some(l1) = self.l1.get(table) else {
            return Known::Cluster(Cluster::Below);
        };
        if entry::table(l1.load(Ordering::Acquire)).is_none() {
            return Known::Cluster(Cluster::Below);
        }
        match self.load(table, at) {
            Some(entry) => Known::Cluster(entry::cluster(entry, self.bits)),
            None => Known::Unread,
        }
    }

    /// Entry `at` of table number `table`, if that is in memory.
    pub(super) fn load(&self, table: usize, at: usize) -> Option<u64> {
        let slot = self
            .slots
            .get(self.index[table].load(Ordering::Acquire) as usize)?;
        let version = slot.version.load(Ordering::Acquire);
        let entry = slot.entries.get()?[at].load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let is_same = version.is_multiple_of(2)
            && slot.version.load(Ordering::Relaxed) == version
            && self.is_in(table, slot);
        is_same.then_some(entry)
    }

    fn is_in(&self, table: usize, slot: &Slot) -> bool {
        let at = self.index[table].load(Ordering::Relaxed) as usize;
        self.slots
            .get(at)
            .is_some_and(|other| std::ptr::eq(other, slot))
    }

    /// Whether table number `table` is in memory.
    pub(super) fn has(&self, table: usize) -> bool {
        self.index[table].load(Ordering::Acquire) != NOWHERE
    }

    /// Puts a table, as it is in the file, into place `slot` instead of number `old`. Only who has the lock of the image
    /// may do that and what follows.
    pub(super) fn put(&self, slot: usize, old: Option<usize>, table: usize, bytes: &[u8]) {
        if let Some(old) = old {
            self.index[old].store(NOWHERE, Ordering::Relaxed);
        }
        let place = &self.slots[slot];
        let version = place.version.load(Ordering::Relaxed);
        place
            .version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        let empty = || (0..self.len()).map(|_| AtomicU64::new(0)).collect();
        let entries = place.entries.get_or_init(empty);
        for (entry, bytes) in entries.iter().zip(bytes.as_chunks().0) {
            entry.store(u64::from_be_bytes(*bytes), Ordering::Relaxed);
        }
        place
            .version
            .store(version.wrapping_add(2), Ordering::Release);
        self.index[table].store(slot as u32, Ordering::Release);
    }

    /// Changes entry `at` of table number `table`, which is in memory; what it was.
    pub(super) fn set(&self, table: usize, at: usize, entry: u64) -> Option<u64> {
        let slot = self
            .slots
            .get(self.index[table].load(Ordering::Relaxed) as usize)?;
        Some(slot.entries.get()?[at].swap(entry, Ordering::Release))
    }

    /// Entry `table` of the first table.
    pub(super) fn l1(&self, table: usize) -> u64 {
        self.l1[table].load(Ordering::Acquire)
    }

    /// Changes that entry.
    pub(super) fn set_l1(&self, table: usize, entry: u64) {
        self.l1[table].store(entry, Ordering::Release);
    }

    /// Entries of the first table.
    pub(super) fn l1_len(&self) -> usize {
        self.l1.len()
    }
}
