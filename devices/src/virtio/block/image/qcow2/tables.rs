//! L2 tables in memory: a bounded number, looked at without waiting while others are read in, or while the L1 table
//! becomes longer.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::entry::{self, Cluster};
use super::header::{self, Header};
use super::numbers;

/// Most bytes of tables in memory: with clusters of 64 KiB, the tables of 128 GiB.
const MAX_BYTES: u64 = 16 << 20;
const MIN_TABLES: u64 = 4;

/// Places for tables that an image has which could become larger.
const GROWING_TABLES: u64 = 256;

/// Not in memory.
const NOWHERE: u32 = u32::MAX;

/// Parts of an L1 table: each but the first is as long as those before it, at least.
const PARTS: usize = 2 + header::MAX_L1.ilog2() as usize;

/// The two levels of tables of one image.
pub(super) struct Tables {
    bits: u32,
    /// The L1 table: as it was when the image was opened, and what was added since.
    parts: [OnceLock<Box<[First]>>; PARTS],
    slots: Box<[Slot]>,
}

/// An entry of the L1 table.
struct First {
    /// The entry, which has the place of an L2 table in the file.
    entry: AtomicU64,
    /// Where in `slots` that table is.
    slot: AtomicU32,
}

impl First {
    fn new(entry: u64) -> Self {
        Self {
            entry: AtomicU64::new(entry),
            slot: AtomicU32::new(NOWHERE),
        }
    }
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
        let l1: Box<[_]> = l1.map(First::new).collect();
        let slots = (MAX_BYTES >> header.cluster_bits)
            .max(MIN_TABLES)
            .min(GROWING_TABLES.max(l1.len() as u64));
        let parts = [const { OnceLock::new() }; PARTS];
        // The first is not there yet.
        let _ = parts[0].set(l1);
        Self {
            bits: header.cluster_bits,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            parts,
        }
    }

    /// Makes the L1 table `len` entries long, at most [`header::MAX_L1`]; more than that as it is convenient. Only who has the
    /// lock of the image may do that.
    pub(super) fn grow(&self, len: usize) {
        let now = self.l1_len();
        let free = self.parts.iter().find(|part| part.get().is_none());
        if let Some(part) = free.filter(|_| len > now) {
            let added = now.max(len - now);
            // Nobody else adds one.
            let _ = part.set((0..added).map(|_| First::new(0)).collect());
        }
    }

    /// Entry `table` of the L1 table.
    fn first(&self, table: usize) -> Option<&First> {
        let mut at = table;
        for part in &self.parts {
            let part = part.get()?;
            match part.get(at) {
                Some(first) => return Some(first),
                None => at -= part.len(),
            }
        }
        None
    }

    /// Where in `slots` a table is.
    fn slot(&self, table: usize) -> Option<&Slot> {
        let slot = self.first(table)?.slot.load(Ordering::Acquire);
        self.slots.get(slot as usize)
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
        if entry::table(self.l1(table)).is_none() {
            return Known::Cluster(Cluster::Below);
        }
        match self.load(table, at) {
            Some(entry) => Known::Cluster(entry::cluster(entry, self.bits)),
            None => Known::Unread,
        }
    }

    /// Entry `at` of table number `table`, if that is in memory.
    pub(super) fn load(&self, table: usize, at: usize) -> Option<u64> {
        let slot = self.slot(table)?;
        let version = slot.version.load(Ordering::Acquire);
        let entry = slot.entries.get()?[at].load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let is_same = version.is_multiple_of(2)
            && slot.version.load(Ordering::Relaxed) == version
            && self
                .slot(table)
                .is_some_and(|other| std::ptr::eq(other, slot));
        is_same.then_some(entry)
    }

    /// Whether table number `table` is in memory.
    pub(super) fn has(&self, table: usize) -> bool {
        self.slot(table).is_some()
    }

    /// Puts a table, as it is in the file, into place `slot` instead of number `old`. Only who has the lock of the image
    /// may do that and what follows.
    pub(super) fn put(&self, slot: usize, old: Option<usize>, table: usize, bytes: &[u8]) {
        if let Some(old) = old.and_then(|old| self.first(old)) {
            old.slot.store(NOWHERE, Ordering::Relaxed);
        }
        let place = &self.slots[slot];
        let version = place.version.load(Ordering::Relaxed);
        place
            .version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        let empty = || (0..self.len()).map(|_| AtomicU64::new(0)).collect();
        let entries = place.entries.get_or_init(empty);
        for (entry, number) in entries.iter().zip(numbers(bytes)) {
            entry.store(number, Ordering::Relaxed);
        }
        place
            .version
            .store(version.wrapping_add(2), Ordering::Release);
        if let Some(first) = self.first(table) {
            first.slot.store(slot as u32, Ordering::Release);
        }
    }

    /// Changes entry `at` of table number `table`, which is in memory; what it was.
    pub(super) fn set(&self, table: usize, at: usize, entry: u64) -> Option<u64> {
        Some(self.slot(table)?.entries.get()?[at].swap(entry, Ordering::Release))
    }

    /// Entry `table` of the L1 table; 0 behind its end.
    pub(super) fn l1(&self, table: usize) -> u64 {
        self.first(table)
            .map_or(0, |first| first.entry.load(Ordering::Acquire))
    }

    /// Changes that entry.
    pub(super) fn set_l1(&self, table: usize, entry: u64) {
        if let Some(first) = self.first(table) {
            first.entry.store(entry, Ordering::Release);
        }
    }

    /// Entries of the L1 table.
    pub(super) fn l1_len(&self) -> usize {
        self.parts
            .iter()
            .map_while(OnceLock::get)
            .map(|part| part.len())
            .sum()
    }
}
