//! Reference counts: which clusters are taken. New ones come from behind the end of the file, where
//! everything is zero.

use std::collections::BTreeMap;
use std::io;

use tracing::warn;

use super::header::{AUTOCLEAR, COUNTS_CLUSTERS, COUNTS_OFFSET, Header};
use super::{PAGE, damaged, numbers, put_numbers};
use crate::virtio::block::file::{AlignedBuffer, DiskFile};

/// The file grows by that, bytes, so that few allocations have to make it longer.
const STEP: u64 = 1 << 20;

/// Blocks of counts kept in memory.
const MAX_BLOCKS: usize = 16;

/// Taken clusters that are passed over behind the end of a file before it is called damaged.
const MAX_TAKEN: u64 = 1 << 16;

/// The counts of one image, 16 bits each.
pub(super) struct Counts {
    bits: u32,
    /// Where the table is, and where the blocks are that it points to.
    offset: u64,
    table: Vec<u64>,
    blocks: BTreeMap<usize, Block>,
    /// The next cluster to look at.
    next: u64,
    /// Length of the file, and what it may become, bytes.
    end: u64,
    limit: u64,
    /// The table is being made larger.
    is_growing: bool,
    /// Clusters in a row that were taken and could not be used, with any content: where, and how many.
    spare: Vec<(u64, u64)>,
}

struct Block {
    bytes: AlignedBuffer,
    /// First and last page that differ from the file's.
    dirty: Option<(usize, usize)>,
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

impl Counts {
    /// Reads the counts of an image that is to be written to.
    pub(super) fn open(file: &DiskFile, header: &Header) -> io::Result<Self> {
        let mut bytes = AlignedBuffer::new(header.counts_bytes.next_multiple_of(PAGE));
        file.read_padded(bytes.bytes_mut(), header.counts_offset)?;
        let end = file.end()?;
        if header.autoclear != 0 {
            // What others keep beside the data is out of date from now on.
            patch_header(file, &[(AUTOCLEAR, &[0; 8])])?;
        }
        Ok(Self {
            bits: header.cluster_bits,
            offset: header.counts_offset,
            table: numbers(&bytes.bytes()[..header.counts_bytes]).collect(),
            blocks: BTreeMap::new(),
            next: end.div_ceil(header.cluster_size()),
            end,
            limit: header.largest_file(end),
            is_growing: false,
            spare: Vec::new(),
        })
    }

    fn cluster_size(&self) -> usize {
        1 << self.bits
    }

    /// Clusters that a block counts.
    fn per_block(&self) -> u64 {
        1 << (self.bits - 1)
    }

    /// Lets the file become larger.
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Takes a cluster, which reads as zeros, and returns its offset.
    pub(super) fn take(&mut self, file: &DiskFile) -> io::Result<u64> {
        for _ in 0..MAX_TAKEN {
            let cluster = self.next;
            let offset = cluster << self.bits;
            if offset + self.cluster_size() as u64 > self.limit {
                return Err(no_space());
            }
            let block = (cluster / self.per_block()) as usize;
            self.make_block(file, block)?;
            if block + 1 == self.table.len() && !self.is_growing {
                self.is_growing = true;
                let grown = self.grow_table(file);
                self.is_growing = false;
                grown?;
                continue;
            }
            let is_free = self.get(file, cluster)? == 0;
            if is_free {
                self.reach(file, offset + self.cluster_size() as u64)?;
                self.set(file, cluster, 1)?;
            }
            // Only now: what has failed is tried again at the same place.
            self.next = self.next.max(cluster + 1);
            if is_free {
                return Ok(offset);
            }
        }
        warn!("a qcow2 image counts clusters behind its end as taken");
        Err(damaged())
    }

    /// Makes the file at least `end` bytes long, with zeros.
    fn reach(&mut self, file: &DiskFile, end: u64) -> io::Result<()> {
        if end <= self.end {
            return Ok(());
        }
        let wanted = end.max((self.end + STEP).min(self.limit)) >> self.bits << self.bits;
        let page = AlignedBuffer::new(PAGE);
        file.write_all(page.bytes(), wanted.max(end) - PAGE as u64)?;
        self.end = wanted.max(end);
        Ok(())
    }

    /// Makes the block number `block`, if there is none. It counts its own cluster, which is the first
    /// that it could give away.
    fn make_block(&mut self, file: &DiskFile, block: usize) -> io::Result<()> {
        match self.table.get(block) {
            None => return Err(no_space()),
            Some(0) => {}
            Some(_) => return Ok(()),
        }
        let cluster = self.next;
        let offset = cluster << self.bits;
        self.reach(file, offset + self.cluster_size() as u64)?;
        let mut bytes = AlignedBuffer::new(self.cluster_size());
        let at = (cluster % self.per_block()) as usize * 2;
        bytes.bytes_mut()[at..at + 2].copy_from_slice(&1u16.to_be_bytes());
        file.write_all(bytes.bytes(), offset)?;
        file.sync()?;
        self.table[block] = offset;
        if let Err(error) = self.write_table_page(file, block) {
            // Else the file would never come to know of the block.
            self.table[block] = 0;
            return Err(error);
        }
        self.next += 1;
        self.make_room(file)?;
        self.blocks.insert(block, Block { bytes, dirty: None });
        Ok(())
    }

    /// Writes the page of the table that has entry `block`.
    fn write_table_page(&self, file: &DiskFile, block: usize) -> io::Result<()> {
        let first = block / (PAGE / 8) * (PAGE / 8);
        let mut page = AlignedBuffer::new(PAGE);
        put_numbers(page.bytes_mut(), self.table[first..].iter().copied());
        file.write_all(page.bytes(), self.offset + first as u64 * 8)
    }

    /// Makes the table twice as long, in a new place.
    fn grow_table(&mut self, file: &DiskFile) -> io::Result<()> {
        let bytes = (self.table.len() * 16).next_multiple_of(self.cluster_size());
        let clusters = (bytes >> self.bits) as u32;
        // To take them may add a block to the table.
        let place = self.take_any(file, clusters.into())?;
        let mut table = AlignedBuffer::new(bytes);
        put_numbers(table.bytes_mut(), self.table.iter().copied());
        let header = [
            (COUNTS_OFFSET, &place.to_be_bytes()[..]),
            (COUNTS_CLUSTERS, &clusters.to_be_bytes()),
        ];
        self.relocate(file, table.bytes(), place, &header)?;
        let (old, len) = (self.offset, self.table.len() as u64 * 8);
        self.offset = place;
        self.table.resize(bytes / 8, 0);
        file.sync()?;
        self.release(file, old, len)
    }

    /// Writes a table to clusters that were taken for it by [`Counts::take_any`], and that to the header. If this
    /// succeeds, the table is there, though not durably before the next sync: should that fail, the file may name the
    /// new place or the old one, and the old one stays counted.
    pub(super) fn relocate(
        &mut self,
        file: &DiskFile,
        table: &[u8],
        place: u64,
        header: &[(usize, &[u8])],
    ) -> io::Result<()> {
        if let Err(error) = self.write_durably(file, table, place) {
            self.keep(place, (table.len() >> self.bits) as u64);
            return Err(error);
        }
        // What the file may lead to now is not kept for anything else, whatever comes of this.
        patch_header(file, header)
    }

    /// Writes a table, and the counts of its clusters.
    fn write_durably(&mut self, file: &DiskFile, table: &[u8], place: u64) -> io::Result<()> {
        file.write_all(table, place)?;
        self.write_dirty(file)?;
        file.sync()
    }

    /// Takes `count` clusters in a row, which may have any content.
    pub(super) fn take_any(&mut self, file: &DiskFile, count: u64) -> io::Result<u64> {
        match self.spare.iter().position(|(_, spare)| *spare == count) {
            Some(at) => Ok(self.spare.swap_remove(at).0),
            None => self.take_row(file, count),
        }
    }

    /// Keeps clusters for [`Counts::take_any`] that could not be used, so that what fails again and again does
    /// not use up the file.
    pub(super) fn keep(&mut self, offset: u64, count: u64) {
        self.spare.push((offset, count));
    }

    /// Takes `count` clusters in a row.
    fn take_row(&mut self, file: &DiskFile, count: u64) -> io::Result<u64> {
        let size = self.cluster_size() as u64;
        let mut first = self.take(file)?;
        let mut have = 1;
        while have < count {
            let next = match self.take(file) {
                Ok(next) => next,
                Err(error) => {
                    self.release(file, first, have * size)?;
                    // They are as they were.
                    self.next = first >> self.bits;
                    return Err(error);
                }
            };
            if next == first + have * size {
                have += 1;
                continue;
            }
            self.release(file, first, have * size)?;
            (first, have) = (next, 1);
        }
        Ok(first)
    }

    /// The block that counts `cluster`, and where in it.
    fn block(&mut self, file: &DiskFile, cluster: u64) -> io::Result<(&mut Block, usize)> {
        let number = (cluster / self.per_block()) as usize;
        let at = (cluster % self.per_block()) as usize * 2;
        if !self.blocks.contains_key(&number) {
            let offset = self.table.get(number).copied().unwrap_or(0);
            let size = 1 << self.bits;
            if offset == 0 || !offset.is_multiple_of(size) || offset > self.limit - size {
                return Err(damaged());
            }
            let mut bytes = AlignedBuffer::new(self.cluster_size());
            file.read_padded(bytes.bytes_mut(), offset)?;
            self.make_room(file)?;
            self.blocks.insert(number, Block { bytes, dirty: None });
        }
        let block = self
            .blocks
            .get_mut(&number)
            .ok_or(io::ErrorKind::NotFound)?;
        Ok((block, at))
    }

    /// Lets another block into memory. To write counts early does no harm: at worst clusters are counted
    /// that nobody uses.
    fn make_room(&mut self, file: &DiskFile) -> io::Result<()> {
        if self.blocks.len() >= MAX_BLOCKS {
            self.write_dirty(file)?;
            self.blocks.clear();
        }
        Ok(())
    }

    fn get(&mut self, file: &DiskFile, cluster: u64) -> io::Result<u16> {
        let (block, at) = self.block(file, cluster)?;
        let bytes = block.bytes.bytes();
        Ok(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
    }

    fn set(&mut self, file: &DiskFile, cluster: u64, count: u16) -> io::Result<()> {
        let (block, at) = self.block(file, cluster)?;
        block.bytes.bytes_mut()[at..at + 2].copy_from_slice(&count.to_be_bytes());
        let page = at / PAGE;
        let (first, last) = block.dirty.unwrap_or((page, page));
        block.dirty = Some((first.min(page), last.max(page)));
        Ok(())
    }

    /// Takes one user from each cluster of `len` bytes at `offset`.
    pub(super) fn release(&mut self, file: &DiskFile, offset: u64, len: u64) -> io::Result<()> {
        let last = (offset + len.max(1) - 1) >> self.bits;
        for cluster in (offset >> self.bits)..=last {
            let count = self.get(file, cluster)?;
            self.set(file, cluster, count.saturating_sub(1))?;
        }
        Ok(())
    }

    /// Writes what has changed.
    pub(super) fn write_dirty(&mut self, file: &DiskFile) -> io::Result<()> {
        for (number, block) in &mut self.blocks {
            let Some((first, last)) = block.dirty else {
                continue;
            };
            let pages = first * PAGE..(last + 1) * PAGE;
            let offset = self.table[*number] + pages.start as u64;
            file.write_all(&block.bytes.bytes()[pages], offset)?;
            block.dirty = None;
        }
        Ok(())
    }
}

/// Changes bytes of the header, which lie in its first page.
pub(super) fn patch_header(file: &DiskFile, changes: &[(usize, &[u8])]) -> io::Result<()> {
    let mut page = AlignedBuffer::new(PAGE);
    file.read_padded(page.bytes_mut(), 0)?;
    for (at, bytes) in changes {
        page.bytes_mut()[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    file.write_all(page.bytes(), 0)
}
