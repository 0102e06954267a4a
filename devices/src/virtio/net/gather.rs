//! Receive buffers of the guest, taken from the queue ahead of the packets.
//!
//! With mergeable buffers a packet may span several chains, and its size is known only once it is
//! read. So chains for the largest packet are held ready as one list of iovecs; a packet uses up
//! those at its front, the rest stays for the next one. Without mergeable buffers one chain is held.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use libc::iovec;
use vm_memory::VolatileSlice;

use crate::GuestMemory;
use crate::virtio::QueueError;
use crate::virtio::chain::{Chain, MAX_IOVECS};
use crate::virtio::queue::VirtQueue;

/// Where `num_buffers` is in the header (5.1.6).
const NUM_BUFFERS_OFFSET: usize = 10;

/// What the guest's buffers can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// As many bytes as asked for.
    Enough,
    /// Fewer, until the guest makes more buffers available.
    Short,
    /// Fewer, and more buffers would not help.
    Never,
}

struct Held {
    head: u16,
    buffers: usize,
    len: usize,
}

/// Receive chains that are held ready.
pub(super) struct Gathered {
    /// Keeps the memory mapped that `buffers` point into.
    _memory: Arc<GuestMemory>,
    chain: Chain,
    chains: Vec<Held>,
    buffers: Vec<iovec>,
    /// Bytes in `buffers`.
    len: usize,
    /// A chain taken after the oldest one held was given back.
    gaps: bool,
    max_chains: usize,
    max_buffers: usize,
    /// Takes what does not fit, so that a cut packet is noticed.
    overflow: Box<u8>,
}

// SAFETY: the pointers in `buffers` point into `_memory`, which is shared between threads anyway and
// lives as long as `self`; they are only used for system calls and volatile copies.
unsafe impl Send for Gathered {}

impl Gathered {
    /// Holds no chains yet. `mergeable`: a packet may span several.
    pub(super) fn new(queue: &VirtQueue, mergeable: bool) -> Self {
        let size = usize::from(queue.size());
        Self {
            _memory: Arc::clone(queue.memory()),
            chain: queue.new_chain(),
            chains: Vec::with_capacity(size),
            buffers: Vec::with_capacity(MAX_IOVECS),
            len: 0,
            gaps: false,
            max_chains: if mergeable { size } else { 1 },
            // One chain's iovecs and the overflow always fit.
            max_buffers: MAX_IOVECS.saturating_sub(1 + size),
            overflow: Box::new(0),
        }
    }

    /// Takes chains until they hold `wanted` bytes. Returns the room there is and the number of
    /// useless chains that were given back.
    pub(super) fn gather(
        &mut self,
        queue: &mut VirtQueue,
        wanted: usize,
    ) -> Result<(Room, usize), QueueError> {
        let mut useless = 0;
        while self.len < wanted {
            if self.is_full() {
                return Ok((Room::Never, useless));
            }
            if useless == self.max_useless() || !queue.next(&mut self.chain)? {
                return Ok((Room::Short, useless));
            }
            if !self.hold() {
                queue.push_used(self.chain.head(), 0);
                self.gaps |= !self.chains.is_empty();
                useless += 1;
            }
        }
        Ok((Room::Enough, useless))
    }

    /// No more than a ring's worth of useless chains in one go.
    fn max_useless(&self) -> usize {
        self.chains.capacity()
    }

    /// Whether no chain is held.
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    fn is_full(&self) -> bool {
        self.chains.len() >= self.max_chains
            || (self.buffers.len() > self.max_buffers && !self.chains.is_empty())
    }

    /// Holds the chain just taken; false if the guest cannot receive into it.
    fn hold(&mut self) -> bool {
        let buffers = self.chain.writable();
        if buffers.is_empty() || self.chain.readable_len() > 0 {
            return false;
        }
        let len = self.chain.writable_len() as usize;
        self.buffers.extend_from_slice(buffers);
        self.chains.push(Held {
            head: self.chain.head(),
            buffers: buffers.len(),
            len,
        });
        self.len += len;
        true
    }

    /// Reads one packet from `tap` into the buffers. `None` if it did not fit and is lost.
    pub(super) fn read(&mut self, tap: &File) -> io::Result<Option<usize>> {
        let overflow = iovec {
            iov_base: (&raw mut *self.overflow).cast(),
            iov_len: 1,
        };
        self.buffers.push(overflow);
        let count = self.buffers.len().min(MAX_IOVECS) as libc::c_int;
        // SAFETY: the iovecs are ranges of guest memory, which `_memory` keeps mapped, and
        // `overflow`, which is ours alone for the time of the call.
        let read = unsafe { libc::readv(tap.as_raw_fd(), self.buffers.as_ptr(), count) };
        self.buffers.pop();
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        Ok((read <= self.len).then_some(read))
    }

    /// Holds no chains any more: puts them back, or gives them back empty where others taken later
    /// were given back.
    pub(super) fn release(&mut self, queue: &mut VirtQueue) {
        match self.gaps {
            false => queue.undo_next(self.chains.len() as u16),
            true => {
                let heads = self.chains.iter().map(|held| held.head);
                heads.for_each(|head| queue.push_used(head, 0));
            }
        }
        self.chains.clear();
        self.buffers.clear();
        self.len = 0;
        self.gaps = false;
    }

    /// Copies a packet into the buffers, as far as it fits.
    pub(super) fn write(&mut self, header: &[u8], frame: &[u8]) {
        self.copy_in(0, header);
        self.copy_in(header.len(), frame);
    }

    /// Gives the chains of the first `len` bytes, a packet, to the guest.
    pub(super) fn complete(&mut self, queue: &mut VirtQueue, len: usize) {
        let mut left = len;
        let mut chains = 0;
        let mut buffers = 0;
        let mut bytes = 0;
        for held in &self.chains {
            let part = left.min(held.len);
            queue.push_used(held.head, part as u32);
            chains += 1;
            buffers += held.buffers;
            bytes += held.len;
            left -= part;
            if left == 0 {
                break;
            }
        }
        // Without mergeable buffers it is 1 (5.1.6.4.1).
        self.copy_in(NUM_BUFFERS_OFFSET, &(chains as u16).to_le_bytes());
        queue.publish();
        self.chains.drain(..chains);
        self.buffers.drain(..buffers);
        self.len -= bytes;
        self.gaps &= !self.chains.is_empty();
    }

    fn copy_in(&self, offset: usize, data: &[u8]) {
        let mut skip = offset;
        let mut data = data;
        for buffer in &self.buffers {
            if data.is_empty() {
                return;
            }
            if skip >= buffer.iov_len {
                skip -= buffer.iov_len;
                continue;
            }
            let (part, rest) = data.split_at(data.len().min(buffer.iov_len - skip));
            // SAFETY: the iovec is a range of guest memory that `_memory` keeps mapped, and
            // `skip + part.len() <= iov_len`.
            let to =
                unsafe { VolatileSlice::new(buffer.iov_base.cast::<u8>().add(skip), part.len()) };
            to.copy_from(part);
            data = rest;
            skip = 0;
        }
    }
}
