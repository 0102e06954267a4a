//! One descriptor chain, copied out of guest memory once and checked (virtio 1.2, 2.7.5 to 2.7.8).
//!
//! A walk reads each descriptor once, so what was checked is what is used. Its buffers become
//! iovecs into guest memory; no Rust reference to that memory is ever made.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use libc::iovec;
use thiserror::Error;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::GuestMemory;
use crate::virtio::split_ring::{Area, DESCRIPTOR_SIZE};

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// The kernel takes no more iovecs in one call (`UIO_MAXIOV`).
pub(super) const MAX_IOVECS: usize = 1024;

/// A chain that the specification forbids, or that does not lie in guest memory.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ChainError {
    /// A descriptor index past the end of its table.
    #[error("Descriptor index {index} is not below {size}")]
    Index {
        /// The index.
        index: u16,
        /// Entries in the table.
        size: u16,
    },
    /// More descriptors than the queue has entries; loops end here too.
    #[error("Chain has more than {0} descriptors")]
    TooLong(u16),
    /// More separate buffers than the device takes (its `seg_max`), or than the kernel does.
    #[error("Chain has more than {0} buffers")]
    TooManyBuffers(usize),
    /// A buffer outside guest memory.
    #[error("Buffer {address:#x}+{len:#x} is not in guest memory")]
    Memory {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// A device-readable buffer after a device-writable one.
    #[error("Readable descriptor after a writable one")]
    Order,
    /// All buffers together exceed 2^32 - 1 bytes.
    #[error("Chain is longer than 4 GiB")]
    Bytes,
    /// An indirect descriptor that was not negotiated, is inside an indirect table, or has `NEXT`.
    #[error("Indirect descriptor where none is allowed")]
    Indirect,
    /// An indirect table that is empty, ragged, or longer than the queue.
    #[error("Indirect table of {0} bytes")]
    IndirectLen(u32),
}

/// A descriptor copied out of guest memory.
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// From its 16 bytes, little-endian as podvisor's hosts are.
    fn new(raw: u128) -> Self {
        Self {
            address: raw as u64,
            len: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        }
    }
}

/// Where descriptors are read from.
enum Table<'a> {
    Direct(&'a Area),
    Indirect(u64),
}

/// The buffers of one request, in storage that is allocated once and reused.
pub struct Chain {
    memory: Arc<GuestMemory>,
    head: u16,
    /// Readable buffers, then writable ones. Each is a nonempty range of `memory`.
    buffers: Vec<iovec>,
    readable: usize,
    readable_len: u32,
    writable_len: u32,
    capacity: usize,
}

// SAFETY: the pointers in `buffers` point into `memory`, which is shared between threads anyway and
// lives as long as the chain; they are only accessed with volatile copies.
unsafe impl Send for Chain {}

impl Chain {
    /// An empty chain for up to `descriptors` descriptors of buffers in `memory`.
    pub fn new(descriptors: usize, memory: Arc<GuestMemory>) -> Self {
        let capacity = descriptors.clamp(1, MAX_IOVECS);
        Self {
            memory,
            head: 0,
            buffers: Vec::with_capacity(capacity),
            readable: 0,
            readable_len: 0,
            writable_len: 0,
            capacity,
        }
    }

    /// Index of the first descriptor, which names the chain in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The device-readable buffers, in order, none empty.
    pub fn readable(&self) -> &[iovec] {
        &self.buffers[..self.readable]
    }

    /// The device-writable buffers, in order, none empty.
    pub fn writable(&self) -> &[iovec] {
        &self.buffers[self.readable..]
    }

    /// Bytes in the readable buffers.
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes in the writable buffers.
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// Copies out of the readable buffers, taken as one string of bytes, from `offset`. Returns the
    /// number of bytes there were, at most `data.len()`.
    pub fn read_at(&self, offset: u32, data: &mut [u8]) -> usize {
        let mut done = 0;
        for_each_part(self.readable(), offset, data.len(), |part| {
            done += part.copy_to(&mut data[done..]);
        });
        done
    }

    /// Copies a structure out of the readable buffers, once; `None` if they end before it does.
    pub fn read_obj<T: ByteValued>(&self, offset: u32) -> Option<T> {
        let mut value = T::zeroed();
        let bytes = value.as_mut_slice();
        (self.read_at(offset, bytes) == bytes.len()).then_some(value)
    }

    /// Copies into the writable buffers, taken as one string of bytes, from `offset`. Returns the
    /// number of bytes that fitted.
    pub fn write_at(&self, offset: u32, data: &[u8]) -> usize {
        let mut done = 0;
        for_each_part(self.writable(), offset, data.len(), |part| {
            part.copy_from(&data[done..done + part.len()]);
            done += part.len();
        });
        done
    }

    /// Reads the chain that starts at `head` of the table in `descriptors`, a table of `size`
    /// entries. On an error the chain is left without buffers.
    pub(super) fn walk(
        &mut self,
        head: u16,
        descriptors: &Area,
        size: u16,
        indirect: bool,
    ) -> Result<(), ChainError> {
        self.clear();
        self.head = head;
        let result = self.walk_table(head, descriptors, size, indirect);
        if result.is_err() {
            self.clear();
        }
        result
    }

    fn clear(&mut self) {
        self.buffers.clear();
        self.readable = 0;
        self.readable_len = 0;
        self.writable_len = 0;
    }

    fn walk_table(
        &mut self,
        head: u16,
        descriptors: &Area,
        size: u16,
        indirect: bool,
    ) -> Result<(), ChainError> {
        let mut table = Table::Direct(descriptors);
        let mut entries = size;
        let mut index = head;
        let mut left = size;
        loop {
            left = left.checked_sub(1).ok_or(ChainError::TooLong(size))?;
            if index >= entries {
                return Err(ChainError::Index {
                    index,
                    size: entries,
                });
            }
            let descriptor = self.fetch(&table, index)?;
            if descriptor.flags & F_INDIRECT != 0 {
                let nested = matches!(table, Table::Indirect(_));
                if !indirect || nested || descriptor.flags & F_NEXT != 0 {
                    return Err(ChainError::Indirect);
                }
                entries = indirect_entries(descriptor.len, size)?;
                table = Table::Indirect(descriptor.address);
                index = 0;
                // The chain goes on in the table; the descriptor that names it is not one of its
                // buffers.
                left = left.saturating_add(1);
                continue;
            }
            self.add(descriptor)?;
            if descriptor.flags & F_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
    }

    fn fetch(&self, table: &Table<'_>, index: u16) -> Result<Descriptor, ChainError> {
        let offset = DESCRIPTOR_SIZE * usize::from(index);
        match table {
            Table::Direct(area) => {
                let low: u64 = area.load(offset, Ordering::Relaxed);
                let high: u64 = area.load(offset + 8, Ordering::Relaxed);
                Ok(Descriptor::new(u128::from(low) | u128::from(high) << 64))
            }
            Table::Indirect(base) => {
                let error = ChainError::Memory {
                    address: *base,
                    len: DESCRIPTOR_SIZE as u32,
                };
                let Some(address) = base.checked_add(offset as u64) else {
                    return Err(error);
                };
                let raw: u128 = self
                    .memory
                    .read_obj(GuestAddress(address))
                    .map_err(|_| error)?;
                Ok(Descriptor::new(raw))
            }
        }
    }

    /// Adds a descriptor's buffer. The specification allows empty ones; they are left out.
    fn add(&mut self, descriptor: Descriptor) -> Result<(), ChainError> {
        let Descriptor {
            address,
            len,
            flags,
            ..
        } = descriptor;
        let writable = flags & F_WRITE != 0;
        if !writable && self.buffers.len() > self.readable {
            return Err(ChainError::Order);
        }
        let total = self.readable_len.checked_add(self.writable_len);
        total
            .and_then(|total| total.checked_add(len))
            .ok_or(ChainError::Bytes)?;
        if len == 0 {
            return Ok(());
        }
        let (start, count) = (GuestAddress(address), len as usize);
        let (buffers, capacity) = (&mut self.buffers, self.capacity);
        match self.memory.get_slice(start, count) {
            Ok(slice) => push(buffers, capacity, &slice)?,
            // It crosses from one region into an adjacent one, or is outside.
            Err(_) => {
                for slice in self.memory.get_slices(start, count) {
                    let slice = slice.map_err(|_| ChainError::Memory { address, len })?;
                    push(buffers, capacity, &slice)?;
                }
            }
        }
        if writable {
            self.writable_len += len;
        } else {
            self.readable_len += len;
            self.readable = self.buffers.len();
        }
        Ok(())
    }
}

/// Adds a buffer to the `capacity` that there may be.
fn push(
    buffers: &mut Vec<iovec>,
    capacity: usize,
    slice: &VolatileSlice<'_>,
) -> Result<(), ChainError> {
    if buffers.len() == capacity {
        return Err(ChainError::TooManyBuffers(capacity));
    }
    buffers.push(iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    });
    Ok(())
}

/// Entries of an indirect table of `len` bytes. "A driver MUST NOT create a descriptor chain longer
/// than the Queue Size", so neither is the table.
fn indirect_entries(len: u32, size: u16) -> Result<u16, ChainError> {
    let entries = len / DESCRIPTOR_SIZE as u32;
    let whole = len.is_multiple_of(DESCRIPTOR_SIZE as u32);
    match u16::try_from(entries) {
        Ok(entries) if whole && entries > 0 && entries <= size => Ok(entries),
        _ => Err(ChainError::IndirectLen(len)),
    }
}

/// Calls `visit` for the parts of `buffers` that hold bytes `offset..offset + len`, as far as they
/// go. The parts' lengths add up to at most `len`.
fn for_each_part(
    buffers: &[iovec],
    offset: u32,
    len: usize,
    mut visit: impl FnMut(VolatileSlice<'_>),
) {
    let mut skip = offset as usize;
    let mut left = len;
    for buffer in buffers {
        if left == 0 {
            return;
        }
        if skip >= buffer.iov_len {
            skip -= buffer.iov_len;
            continue;
        }
        let count = left.min(buffer.iov_len - skip);
        // SAFETY: the iovec is a range of guest memory that `Chain::memory` keeps mapped, and
        // `skip + count <= iov_len`.
        let part = unsafe { VolatileSlice::new(buffer.iov_base.cast::<u8>().add(skip), count) };
        visit(part);
        left -= count;
        skip = 0;
    }
}
