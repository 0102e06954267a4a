//! Places for clusters at the top of a disk: what has none is copied there before it is written to.

use std::io;

use super::super::damaged;
use super::super::entry::{self, Cluster};
use super::super::writer::Writer;
use super::{Exclusive, Found, Layered};
use crate::virtio::block::file::AlignedBuffer;

impl Layered {
    /// Gives the cluster at `offset` a place at the top, with what it has now.
    pub(super) fn make_place(&self, state: &mut Exclusive, offset: u64) -> io::Result<()> {
        let top = self.top()?;
        let start = offset >> top.bits << top.bits;
        self.load(state, start)?;
        let (table, at) = self.make_table(state, start)?;
        let old = top.tables.load(table, at).ok_or_else(damaged)?;
        let old = entry::cluster(old, top.bits);
        let kept = match old {
            Cluster::Here { owned: true, .. } => return Ok(()),
            Cluster::Here { owned: false, .. } | Cluster::Damaged => return Err(damaged()),
            Cluster::Zero { place: Some(host) }
                if host + (1 << top.bits) > self.layers[0].limit() =>
            {
                return Err(damaged());
            }
            Cluster::Zero { place } => place,
            Cluster::Below | Cluster::Compressed { .. } => None,
        };
        let is_empty = kept.is_none() && self.is_hole(state, start)?;
        let counts = &mut self.writer(state)?.counts;
        let host = match kept {
            Some(host) => host,
            None if is_empty => counts.take(&self.files[0])?,
            None => counts.take_any(&self.files[0], 1)?,
        };
        if !is_empty && let Err(error) = self.fill(state, start, host) {
            if kept.is_none() {
                self.writer(state)?.counts.keep(host, 1);
            }
            return Err(error);
        }
        let writer = self.writer(state)?;
        writer.change(&top.tables, table, at, entry::owned(host));
        if let Cluster::Compressed { host, len } = old {
            writer.release(host, len as u64);
        }
        Ok(())
    }

    pub(super) fn writer<'a>(&self, state: &'a mut Exclusive) -> io::Result<&'a mut Writer> {
        state.writer.as_mut().ok_or_else(damaged)
    }

    /// Writes what the cluster at `start` has now to `host`.
    fn fill(&self, state: &mut Exclusive, start: u64, host: u64) -> io::Result<()> {
        let size = 1 << self.top()?.bits;
        let mut cluster = std::mem::replace(&mut state.cluster, AlignedBuffer::new(0));
        let bytes = &mut cluster.bytes_mut()[..size];
        let copied = self.read(state, bytes, start);
        let written = copied.and_then(|()| self.files[0].write_all(bytes, host));
        state.cluster = cluster;
        written
    }

    /// Whether all of the cluster at `start` is zeros, in the layers as they are.
    fn is_hole(&self, state: &mut Exclusive, start: u64) -> io::Result<bool> {
        let end = (start + (1 << self.top()?.bits)).min(self.end());
        let mut offset = start;
        while offset < end {
            match self.load(state, offset)? {
                (Found::Hole, len) => offset += len,
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The numbers of the entries for the cluster at `start`, in tables that are there, in memory and the
    /// top's own.
    fn make_table(&self, state: &mut Exclusive, start: u64) -> io::Result<(usize, usize)> {
        let top = self.top()?;
        let (table, at) = top.tables.numbers(start >> top.bits);
        if table >= top.tables.l1_len() {
            return Err(damaged());
        }
        let file = &self.files[0];
        self.writer(state)?.make_room(file, &top.tables)?;
        let l1 = top.tables.l1(table);
        if entry::table(l1).is_none() {
            if !top.tables.has(table) {
                let zeros = AlignedBuffer::new(1 << top.bits);
                self.put_table(state, 0, table, zeros.bytes())?;
            }
            let writer = self.writer(state)?;
            let host = writer.counts.take(file)?;
            writer.change_l1(&top.tables, table, entry::owned(host));
        } else if !entry::is_owned(l1) {
            return Err(damaged());
        }
        if !top.tables.has(table) {
            self.read_table(state, 0, start)?;
        }
        Ok((table, at))
    }

    /// Marks the cluster at `start` as zeros.
    pub(super) fn mark_zero(&self, state: &mut Exclusive, start: u64) -> io::Result<()> {
        let top = self.top()?;
        let (table, at) = self.make_table(state, start)?;
        let old = top.tables.load(table, at).ok_or_else(damaged)?;
        let writer = self.writer(state)?;
        writer.change(&top.tables, table, at, entry::zero());
        if let Cluster::Compressed { host, len } = entry::cluster(old, top.bits) {
            writer.release(host, len as u64);
        }
        Ok(())
    }
}
