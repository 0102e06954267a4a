//! What has changed in the tables of an image and is not in its file yet.
//!
//! Each change remembers what was there before, and when it was made. A flush writes those that were made
//! before it began, in rounds with a wait for durability between them:
//!
//! ```text
//! round 0   the data; changes made from now on belong to the next flush
//! round 1   counts of new clusters
//! round 2   L2 and L1 entries; an L2 table that is new to the file reads as zeros there
//! then      counts of clusters that nothing leads to any more, with the counts of the next flush
//! ```
//!
//! Entries of a later flush are written as they were, so no table in the file ever leads to what is not durable.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::ops::Range;

use super::counts::{Counts, PAGE};
use super::entry;
use super::tables::Tables;
use crate::virtio::block::file::{AlignedBuffer, DiskFile};
use crate::virtio::block::image::FlushState;

/// Entries in a page of a table.
const ENTRIES: usize = PAGE / 8;

/// The changes of one entry: the flush that each belongs to, in order, and what the entry was before.
#[derive(Clone, Debug, Default)]
struct Changes(Vec<(u64, u64)>);

impl Changes {
    fn note(&mut self, old: u64, epoch: u64) {
        if self.0.last().is_none_or(|(last, _)| *last != epoch) {
            self.0.push((epoch, old));
        }
    }

    /// Whether a change is to be written by a flush with this mark.
    fn are_due(&self, mark: u64) -> bool {
        self.0.first().is_some_and(|(epoch, _)| *epoch <= mark)
    }

    /// What the entry was when the flush began, if it has changed since.
    fn at(&self, mark: u64) -> Option<u64> {
        let later = self.0.iter().find(|(epoch, _)| *epoch > mark);
        later.map(|(_, old)| *old)
    }

    /// Forgets what is written; whether anything is left.
    fn keep_after(&mut self, mark: u64) -> bool {
        self.0.retain(|(epoch, _)| *epoch > mark);
        !self.0.is_empty()
    }
}

/// Clusters that lose a user.
#[derive(Clone, Copy, Debug)]
struct Released {
    offset: u64,
    len: u64,
    /// The flush that makes the change durable by which they lose it.
    epoch: u64,
}

/// The changes of the image at the top.
pub(super) struct Writer {
    pub(super) counts: Counts,
    l1_offset: u64,
    epoch: u64,
    /// By the numbers of table and entry.
    changes: BTreeMap<(usize, usize), Changes>,
    l1_changes: BTreeMap<usize, Changes>,
    released: Vec<Released>,
    /// How often tables were written, and which of these writes is known to be durable.
    written: u64,
    durable: u64,
}

impl Writer {
    pub(super) fn new(counts: Counts, l1_offset: u64) -> Self {
        Self {
            counts,
            l1_offset,
            epoch: 1,
            changes: BTreeMap::new(),
            l1_changes: BTreeMap::new(),
            released: Vec::new(),
            written: 0,
            durable: 0,
        }
    }

    /// Changes an entry of an L2 table that is in memory.
    pub(super) fn change(&mut self, tables: &Tables, table: usize, at: usize, entry: u64) {
        if let Some(old) = tables.set(table, at, entry) {
            self.changes
                .entry((table, at))
                .or_default()
                .note(old, self.epoch);
        }
    }

    /// Changes an entry of the L1 table.
    pub(super) fn change_l1(&mut self, tables: &Tables, table: usize, entry: u64) {
        let old = tables.l1(table);
        tables.set_l1(table, entry);
        self.l1_changes
            .entry(table)
            .or_default()
            .note(old, self.epoch);
    }

    /// Notes that the clusters of `len` bytes at `offset` lose a user by what has just changed.
    pub(super) fn release(&mut self, offset: u64, len: u64) {
        let epoch = self.epoch;
        self.released.push(Released { offset, len, epoch });
    }

    /// Whether the file does not have all of a table yet.
    pub(super) fn is_changed(&self, table: usize) -> bool {
        let entries = (table, 0)..(table + 1, 0);
        self.changes.range(entries).next().is_some()
    }

    /// Does what round `round` of a flush begins with. False if nothing is left to wait for.
    pub(super) fn flush(
        &mut self,
        file: &DiskFile,
        tables: &Tables,
        round: u32,
        state: &mut FlushState,
    ) -> io::Result<bool> {
        match round {
            0 => {
                self.begin(state);
                Ok(true)
            }
            1 => {
                if state.mark == 0 {
                    // The data of one request is durable, but not what clusters were filled with.
                    self.begin(state);
                    if !self.is_settled(state.mark) {
                        file.sync()?;
                    }
                }
                self.counts.write_dirty(file)?;
                Ok(!self.is_settled(state.mark))
            }
            2 => {
                self.write_tables(file, tables, state.mark)?;
                state.written = self.written;
                Ok(true)
            }
            _ => {
                self.durable = self.durable.max(state.written);
                self.give_back(file, state.mark)?;
                Ok(false)
            }
        }
    }

    fn begin(&mut self, state: &mut FlushState) {
        state.mark = self.epoch;
        self.epoch += 1;
    }

    /// Whether all changes up to `mark` are durable.
    fn is_settled(&self, mark: u64) -> bool {
        self.written == self.durable
            && !self.changes.values().any(|changes| changes.are_due(mark))
            && !self
                .l1_changes
                .values()
                .any(|changes| changes.are_due(mark))
    }

    /// Writes everything and waits.
    pub(super) fn settle(&mut self, file: &DiskFile, tables: &Tables) -> io::Result<()> {
        let mut state = FlushState::default();
        for round in 0.. {
            if !self.flush(file, tables, round, &mut state)? {
                break;
            }
            file.sync()?;
        }
        self.counts.write_dirty(file)?;
        Ok(())
    }

    /// Writes the pages of tables with changes up to `mark`.
    fn write_tables(&mut self, file: &DiskFile, tables: &Tables, mark: u64) -> io::Result<()> {
        let mut page = AlignedBuffer::new(PAGE);
        let due = self
            .changes
            .iter()
            .filter(|(_, changes)| changes.are_due(mark));
        let mut pages: Vec<_> = due.map(|((table, at), _)| (*table, at / ENTRIES)).collect();
        pages.dedup();
        for (table, number) in pages {
            let Some(offset) = entry::table(tables.l1(table)) else {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            };
            let first = number * ENTRIES;
            for (at, bytes) in (first..).zip(page.bytes_mut().chunks_mut(8)) {
                let then = self
                    .changes
                    .get(&(table, at))
                    .and_then(|changes| changes.at(mark));
                let entry = then.or_else(|| tables.load(table, at));
                let entry = entry.ok_or(io::Error::from_raw_os_error(libc::EIO))?;
                bytes.copy_from_slice(&entry.to_be_bytes());
            }
            file.write_all(page.bytes(), offset + first as u64 * 8)?;
            self.written += 1;
            forget(
                &mut self.changes,
                (table, first)..(table, first + ENTRIES),
                mark,
            );
        }
        self.write_l1(file, tables, mark, &mut page)
    }

    fn write_l1(
        &mut self,
        file: &DiskFile,
        tables: &Tables,
        mark: u64,
        page: &mut AlignedBuffer,
    ) -> io::Result<()> {
        let due = self
            .l1_changes
            .iter()
            .filter(|(_, changes)| changes.are_due(mark));
        let mut pages: Vec<_> = due.map(|(table, _)| table / ENTRIES).collect();
        pages.dedup();
        for number in pages {
            let first = number * ENTRIES;
            for (table, bytes) in (first..).zip(page.bytes_mut().chunks_mut(8)) {
                let then = self
                    .l1_changes
                    .get(&table)
                    .and_then(|changes| changes.at(mark));
                let now = || (table < tables.l1_len()).then(|| tables.l1(table));
                let entry = then.or_else(now).unwrap_or(0);
                bytes.copy_from_slice(&entry.to_be_bytes());
            }
            file.write_all(page.bytes(), self.l1_offset + first as u64 * 8)?;
            self.written += 1;
            forget(&mut self.l1_changes, first..first + ENTRIES, mark);
        }
        Ok(())
    }

    /// Takes their users from clusters that nothing durable leads to any more.
    fn give_back(&mut self, file: &DiskFile, mark: u64) -> io::Result<()> {
        let released = std::mem::take(&mut self.released);
        for clusters in released {
            if clusters.epoch <= mark {
                self.counts.release(file, clusters.offset, clusters.len)?;
            } else {
                self.released.push(clusters);
            }
        }
        Ok(())
    }
}

/// Forgets what is written of the entries in `range`.
fn forget<K: Ord + Copy>(changes: &mut BTreeMap<K, Changes>, range: Range<K>, mark: u64) {
    let keys: Vec<K> = changes.range(range).map(|(key, _)| *key).collect();
    for key in keys {
        if let Entry::Occupied(mut entry) = changes.entry(key)
            && !entry.get_mut().keep_after(mark)
        {
            entry.remove();
        }
    }
}
