//! What has changed in the tables of an image and is not in its file yet.
//!
//! Each change remembers what was there before, and when it was made. A flush writes those that were made
//! before it began, in rounds with a wait for durability between them:
//!
//! ```text
//! round 0   the data, and counts of new clusters; changes made from now on belong to the next flush
//! round 1   L2 and L1 entries, if any have changed; an L2 table that is new to the file reads as zeros there
//! then      counts of clusters that nothing leads to any more, with the counts of the next flush
//! ```
//!
//! Entries of a later flush are written as they were, so no table in the file ever leads to what is not durable.
//! Where a guest changes much and flushes nothing, the image does.

use std::collections::BTreeMap;
use std::io;

use super::counts::{Counts, patch_header};
use super::header::{Header, L1_OFFSET, L1_SIZE, SIZE};
use super::tables::Tables;
use super::{PAGE, damaged, entry, put_numbers};
use crate::virtio::block::file::{AlignedBuffer, DiskFile};
use crate::virtio::block::image::FlushState;

/// Entries in a page of a table.
const ENTRIES: usize = PAGE / 8;

/// Changes that may be in memory, some 128 bytes each. With clusters of 64 KiB they are 2 GiB of a disk.
pub(super) const MAX_CHANGES: usize = 1 << 15;

/// An entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Entry {
    /// Of the L1 table.
    First(usize),
    /// Of the L2 table of that number.
    Second(usize, usize),
}

impl Entry {
    /// The first entry of its page.
    fn page(self) -> Self {
        match self {
            Self::First(at) => Self::First(at / ENTRIES * ENTRIES),
            Self::Second(table, at) => Self::Second(table, at / ENTRIES * ENTRIES),
        }
    }

    /// The entry that comes `count` later.
    fn later(self, count: usize) -> Self {
        match self {
            Self::First(at) => Self::First(at + count),
            Self::Second(table, at) => Self::Second(table, at + count),
        }
    }

    /// What it is now; `None` if that is not in memory.
    fn now(self, tables: &Tables) -> Option<u64> {
        match self {
            // The page may go on behind the table.
            Self::First(at) => Some(tables.l1(at)),
            Self::Second(table, at) => tables.load(table, at),
        }
    }
}

/// The changes of one entry: the flush that each belongs to, in order, and what the entry was before.
#[derive(Clone, Debug, Default)]
struct Changes(Vec<(u64, u64)>);

impl Changes {
    /// Whether it is one more.
    fn note(&mut self, old: u64, epoch: u64) -> bool {
        let is_new = self.0.last().is_none_or(|(last, _)| *last != epoch);
        if is_new {
            self.0.push((epoch, old));
        }
        is_new
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

    /// Forgets what is written; how many changes that are.
    fn forget(&mut self, mark: u64) -> usize {
        let before = self.0.len();
        self.0.retain(|(epoch, _)| *epoch > mark);
        before - self.0.len()
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
    /// Where the L1 table is, and its entries there.
    l1_offset: u64,
    l1_size: usize,
    epoch: u64,
    changes: BTreeMap<Entry, Changes>,
    /// How many these are.
    count: usize,
    released: Vec<Released>,
    /// How often tables were written, and which of these writes is known to be durable.
    written: u64,
    durable: u64,
}

impl Writer {
    pub(super) fn new(counts: Counts, header: &Header) -> Self {
        Self {
            counts,
            l1_offset: header.l1_offset,
            l1_size: header.l1_size,
            epoch: 1,
            changes: BTreeMap::new(),
            count: 0,
            released: Vec::new(),
            written: 0,
            durable: 0,
        }
    }

    /// Changes an entry of an L2 table that is in memory.
    pub(super) fn change(&mut self, tables: &Tables, table: usize, at: usize, entry: u64) {
        if let Some(old) = tables.set(table, at, entry) {
            self.note(Entry::Second(table, at), old);
        }
    }

    /// Changes an entry of the L1 table.
    pub(super) fn change_l1(&mut self, tables: &Tables, table: usize, entry: u64) {
        let old = tables.l1(table);
        tables.set_l1(table, entry);
        self.note(Entry::First(table), old);
    }

    fn note(&mut self, entry: Entry, old: u64) {
        let changes = self.changes.entry(entry).or_default();
        self.count += usize::from(changes.note(old, self.epoch));
    }

    /// Changes that are in memory only.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Lets there be changes to two entries more.
    pub(super) fn make_room(&mut self, file: &DiskFile, tables: &Tables) -> io::Result<()> {
        match self.count + 2 > MAX_CHANGES {
            true => self.settle(file, tables),
            false => Ok(()),
        }
    }

    /// Notes that the clusters of `len` bytes at `offset` lose a user by what has just changed.
    pub(super) fn release(&mut self, offset: u64, len: u64) {
        let epoch = self.epoch;
        self.released.push(Released { offset, len, epoch });
    }

    /// Whether the file does not have all of a table yet.
    pub(super) fn is_changed(&self, table: usize) -> bool {
        let entries = Entry::Second(table, 0)..Entry::Second(table + 1, 0);
        self.changes.range(entries).next().is_some()
    }

    /// Does what the next round of a flush begins with. False if nothing is left to wait for.
    pub(super) fn flush(
        &mut self,
        file: &DiskFile,
        tables: &Tables,
        state: &mut FlushState,
    ) -> io::Result<bool> {
        self.durable = self.durable.max(state.covered);
        if state.mark == 0 {
            state.mark = self.epoch;
            self.epoch += 1;
        }
        let is_data = state.round == 0 && !state.is_durable;
        if state.round > 1 || !is_data && self.is_settled(state.mark) {
            self.give_back(file, state.mark)?;
            return Ok(false);
        }
        match state.round {
            0 => self.counts.write_dirty(file)?,
            _ => self.write_tables(file, tables, state.mark)?,
        }
        state.covers = self.written;
        Ok(true)
    }

    /// Whether all changes up to `mark` are durable.
    fn is_settled(&self, mark: u64) -> bool {
        let mut changes = self.changes.values();
        self.written == self.durable && !changes.any(|changes| changes.are_due(mark))
    }

    /// Writes everything and waits, if there is anything.
    pub(super) fn settle(&mut self, file: &DiskFile, tables: &Tables) -> io::Result<()> {
        let mut state = FlushState::of_durable_data();
        while self.flush(file, tables, &mut state)? {
            file.sync()?;
            state.waited();
        }
        self.counts.write_dirty(file)
    }

    /// Lets the L1 table have `len` entries, in a new place if need be.
    pub(super) fn grow_l1(
        &mut self,
        file: &DiskFile,
        tables: &Tables,
        len: usize,
    ) -> io::Result<()> {
        if len > self.l1_size {
            self.settle(file, tables)?;
            let cluster = tables.len() * 8;
            let bytes = (len * 8).next_multiple_of(cluster);
            let place = self.counts.take_any(file, (bytes / cluster) as u64)?;
            let mut table = AlignedBuffer::new(bytes);
            // None of its entries has changed since.
            put_numbers(table.bytes_mut(), (0..self.l1_size).map(|at| tables.l1(at)));
            let header = [
                (L1_SIZE, &((bytes / 8) as u32).to_be_bytes()[..]),
                (L1_OFFSET, &place.to_be_bytes()),
            ];
            self.counts.relocate(file, table.bytes(), place, &header)?;
            let (old, old_bytes) = (self.l1_offset, self.l1_size as u64 * 8);
            (self.l1_offset, self.l1_size) = (place, bytes / 8);
            file.sync()?;
            if old_bytes > 0 {
                self.counts.release(file, old, old_bytes)?;
            }
        }
        tables.grow(len);
        Ok(())
    }

    /// Writes to the header that the disk has `bytes` bytes.
    pub(super) fn set_size(&mut self, file: &DiskFile, bytes: u64) -> io::Result<()> {
        file.sync()?;
        patch_header(file, &[(SIZE, &bytes.to_be_bytes())])?;
        file.sync()
    }

    /// Writes the pages of tables with changes up to `mark`.
    fn write_tables(&mut self, file: &DiskFile, tables: &Tables, mark: u64) -> io::Result<()> {
        let due = self.changes.iter();
        let due = due.filter(|(_, changes)| changes.are_due(mark));
        let mut pages: Vec<_> = due.map(|(entry, _)| entry.page()).collect();
        pages.dedup();
        let mut bytes = AlignedBuffer::new(PAGE);
        for page in pages {
            let offset = match page {
                Entry::First(at) => self.l1_offset + at as u64 * 8,
                Entry::Second(table, at) => {
                    entry::table(tables.l1(table)).ok_or_else(damaged)? + at as u64 * 8
                }
            };
            let then = |entry: Entry| {
                let changes = self.changes.get(&entry);
                let then = changes.and_then(|changes| changes.at(mark));
                then.or_else(|| entry.now(tables)).ok_or_else(damaged)
            };
            let entries = (0..ENTRIES).map(|count| then(page.later(count)));
            let entries = entries.collect::<io::Result<Vec<_>>>()?;
            put_numbers(bytes.bytes_mut(), entries);
            file.write_all(bytes.bytes(), offset)?;
            self.written += 1;
            self.forget(page, mark);
        }
        Ok(())
    }

    /// Forgets what is written of a page.
    fn forget(&mut self, page: Entry, mark: u64) {
        let entries = page..page.later(ENTRIES);
        let is_done = |_: &Entry, changes: &mut Changes| {
            self.count -= changes.forget(mark);
            changes.0.is_empty()
        };
        self.changes.extract_if(entries, is_done).for_each(drop);
    }

    /// Takes their users from clusters that nothing durable leads to any more. Where that fails, what comes behind is
    /// left to the next flush.
    fn give_back(&mut self, file: &DiskFile, mark: u64) -> io::Result<()> {
        let is_due = |clusters: &mut Released| clusters.epoch <= mark;
        let mut due = self.released.extract_if(.., is_due);
        due.try_for_each(|Released { offset, len, .. }| self.counts.release(file, offset, len))
    }
}
