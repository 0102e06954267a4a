//! A disk that becomes larger while it is used.

use std::io;
use std::sync::atomic::Ordering;

use super::super::damaged;
use super::super::entry::Cluster;
use super::super::header::{HeaderError, MAX_L1, TOO_LARGE, l1_entries, with_disk};
use super::super::tables::Known;
use super::{Exclusive, Found, Layered};

fn refused(error: HeaderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

impl Layered {
    /// Gives the disk `bytes` bytes. What is new of it reads as zeros, whatever lies below. The file says so first,
    /// in an order that a loss of power does not harm.
    pub(super) fn grow(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        let state = &mut *state;
        let (top, file, old) = (self.top()?, &self.files[0], self.end());
        if bytes < old {
            let error = format!("it has {old} bytes, and does not shrink");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        if bytes == old {
            return Ok(());
        }
        let size = 1 << top.bits;
        let entries = l1_entries(bytes, size);
        if entries > MAX_L1 {
            return Err(refused(TOO_LARGE));
        }
        let below = self.layers.get(1).map_or(0, |layer| layer.bytes());
        if below > old && top.version < 3 {
            let what =
                "a backing file that is larger, and version 2, in which zeros cannot be marked";
            return Err(refused(HeaderError::Unsupported(what)));
        }
        let limit = with_disk(file.end()?, bytes);
        let writer = self.writer(state)?;
        writer.counts.set_limit(limit);
        self.layers[0].limit.store(limit, Ordering::Relaxed);
        writer.grow_l1(file, &top.tables, entries as usize)?;
        self.clear_tail(state, old, below)?;
        for start in (old.next_multiple_of(size)..below.min(bytes)).step_by(1 << top.bits) {
            self.mark_zero(state, start)?;
        }
        let writer = self.writer(state)?;
        writer.settle(file, &top.tables)?;
        writer.set_size(file, bytes)?;
        self.layers[0].bytes.store(bytes, Ordering::Release);
        Ok(())
    }

    /// Zeroes what the last cluster has behind the end of the disk, at `old`.
    fn clear_tail(&self, state: &mut Exclusive, old: u64, below: u64) -> io::Result<()> {
        let top = self.top()?;
        let size = 1 << top.bits;
        let start = old / size * size;
        if start == old {
            return Ok(());
        }
        self.load(state, start)?;
        match top.tables.find(start >> top.bits) {
            Known::Unread => return Err(damaged()),
            Known::Cluster(Cluster::Zero { .. }) => return Ok(()),
            Known::Cluster(Cluster::Below) if below <= old => return Ok(()),
            Known::Cluster(_) => self.make_place(state, start)?,
        }
        match self.load(state, start)? {
            (Found::Here { layer: 0, host, .. }, _) => {
                self.files[0].zero_slowly(host + (old - start), size - (old - start))
            }
            _ => Err(damaged()),
        }
    }
}
