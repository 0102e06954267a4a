//! Requests in flight. A slot owns all that its completion needs, so nothing is read from guest
//! memory a second time.

use std::ptr;
use std::sync::Arc;
use std::time::Instant;

use libc::iovec;

use crate::GuestMemory;
use crate::virtio::block::image::{Image, Op};
use crate::virtio::block::request::{Request, Status};
use crate::virtio::chain::Chain;

/// Data buffers of one request: those that `seg_max` promises, and some that the driver may have
/// split off where data shares a buffer with the header or the status.
pub(super) const SLOT_BUFFERS: usize = 128;

const NO_BUFFER: iovec = iovec {
    iov_base: ptr::null_mut(),
    iov_len: 0,
};

/// A request in flight.
pub(super) struct Slot {
    pub(super) head: u16,
    pub(super) request: Request,
    /// The length for the used ring if the request succeeds.
    pub(super) written: u32,
    pub(super) started: Instant,
    status: *mut u8,
    /// What the image does for the request now.
    pub(super) op: Op,
    /// Where `op` goes on, and how much of it is left, bytes.
    pub(super) offset: u64,
    pub(super) left: u64,
    /// Writes are durable when they complete.
    pub(super) dsync: bool,
    /// The buffers left, in this slot's part of the arena.
    first: usize,
    end: usize,
}

/// What to do after a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Submit what is left.
    Again,
    Done,
    /// The operation failed with this error number.
    Failed(i32),
}

impl Slot {
    /// The slot of `request`, which `chain` holds. `written` is the length for the used ring.
    pub(super) fn new(
        chain: &Chain,
        request: Request,
        written: u32,
        started: Instant,
        dsync: bool,
    ) -> Option<Self> {
        let last = chain.writable().last()?;
        let (op, offset, left) = match request {
            Request::Read { offset, len } => (Op::Read, offset, u64::from(len)),
            Request::Write { offset, len } => (Op::Write, offset, u64::from(len)),
            Request::Flush | Request::GetId => (Op::Sync, 0, 0),
            Request::Discard { offset, len } => (Op::Punch, offset, len),
            Request::WriteZeroes {
                offset,
                len,
                unmap: true,
            } => (Op::Punch, offset, len),
            Request::WriteZeroes {
                offset,
                len,
                unmap: false,
            } => (Op::Zero, offset, len),
        };
        Some(Self {
            head: chain.head(),
            request,
            written,
            started,
            status: last.iov_base.cast::<u8>().wrapping_add(last.iov_len - 1),
            op,
            offset,
            left,
            dsync,
            first: 0,
            end: 0,
        })
    }

    /// Takes note of a completed operation: `result` as the system call returns it, negative error
    /// numbers included.
    fn advance(&mut self, result: i32, buffers: &mut [iovec]) -> Step {
        match (self.op, result) {
            (_, error) if error == -libc::EINTR || error == -libc::EAGAIN => Step::Again,
            (_, error) if error < 0 => Step::Failed(-error),
            // The image is shorter than it was.
            (Op::Read | Op::Write, 0) => Step::Failed(libc::EIO),
            (Op::Read | Op::Write, done) => {
                self.consume(done as usize, buffers);
                if self.left == 0 {
                    Step::Done
                } else {
                    Step::Again
                }
            }
            (Op::Punch | Op::Zero, _) if self.dsync => {
                self.op = Op::Sync;
                Step::Again
            }
            _ => Step::Done,
        }
    }

    /// Goes on after a short transfer.
    fn consume(&mut self, done: usize, buffers: &mut [iovec]) {
        self.offset += done as u64;
        self.left = self.left.saturating_sub(done as u64);
        let mut rest = done;
        while let Some(buffer) = buffers[..self.end].get_mut(self.first) {
            if rest < buffer.iov_len {
                buffer.iov_base = buffer.iov_base.wrapping_byte_add(rest);
                buffer.iov_len -= rest;
                return;
            }
            rest -= buffer.iov_len;
            self.first += 1;
        }
    }
}

/// A fixed number of slots and their buffers. Storage is reserved at once but not touched before it
/// is used, and the slot freed last is used next: a quiet disk needs little memory.
pub(super) struct Slots {
    slots: Vec<Slot>,
    buffers: Vec<[iovec; SLOT_BUFFERS]>,
    free: Vec<u16>,
    count: usize,
    /// Keeps the memory that the slots point into.
    _memory: Arc<GuestMemory>,
}

// SAFETY: the pointers point into `_memory`, which is shared between threads anyway and lives as
// long as the slots.
unsafe impl Send for Slots {}

impl Slots {
    /// `count` slots for requests in `memory`.
    pub(super) fn new(count: u16, memory: Arc<GuestMemory>) -> Self {
        let count = usize::from(count);
        Self {
            slots: Vec::with_capacity(count),
            buffers: Vec::with_capacity(count),
            free: Vec::with_capacity(count),
            count,
            _memory: memory,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < self.count
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts a request into a free slot, with the `slot.left` bytes of data that start `skip` bytes
    /// into `buffers`. `None` if there is no room, or there are too many buffers.
    pub(super) fn take(&mut self, mut slot: Slot, buffers: &[iovec], skip: u32) -> Option<u16> {
        let index = self
            .free
            .last()
            .map_or(self.slots.len(), |&index| usize::from(index));
        if index == self.buffers.len() {
            if index == self.count {
                return None;
            }
            self.buffers.push([NO_BUFFER; SLOT_BUFFERS]);
        }
        if matches!(slot.op, Op::Read | Op::Write) {
            slot.end = copy_part(buffers, skip, slot.left, &mut self.buffers[index])?;
        }
        match self.slots.get_mut(index) {
            Some(old) => {
                *old = slot;
                self.free.pop();
            }
            None => self.slots.push(slot),
        }
        Some(index as u16)
    }

    /// The request in slot `index` and the buffers it has left.
    pub(super) fn get(&self, index: u16) -> Option<(&Slot, &[iovec])> {
        let slot = self.slots.get(usize::from(index))?;
        Some((
            slot,
            &self.buffers[usize::from(index)][slot.first..slot.end],
        ))
    }

    /// See [`Slot::advance`].
    pub(super) fn advance(&mut self, index: u16, result: i32) -> Step {
        let index = usize::from(index);
        self.slots[index].advance(result, &mut self.buffers[index])
    }

    /// Frees a slot, after writing the request's status where the driver wants it.
    pub(super) fn finish(&mut self, index: u16, status: Status) {
        let slot = &self.slots[usize::from(index)];
        // SAFETY: `status` is the last byte of a writable buffer that was checked to be in guest
        // memory, which `_memory` keeps mapped.
        unsafe { slot.status.write_volatile(status as u8) };
        self.free.push(index);
    }

    /// Does slot `index`'s operation on this thread, to its end.
    pub(super) fn perform(&mut self, index: u16, image: &Image) -> Step {
        loop {
            let Some((slot, buffers)) = self.get(index) else {
                return Step::Done;
            };
            let done = image.perform(slot.op, slot.offset, slot.left, buffers, slot.dsync);
            let result = match done {
                Ok(count) => i32::try_from(count).unwrap_or(i32::MAX),
                Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
            };
            match self.advance(index, result) {
                Step::Again => {}
                step => return step,
            }
        }
    }
}

/// Copies the `len` bytes that start `skip` bytes into `from`. Returns how many buffers that makes,
/// `None` if they do not fit.
fn copy_part(from: &[iovec], skip: u32, len: u64, to: &mut [iovec]) -> Option<usize> {
    let (mut skip, mut left, mut count) = (skip as usize, len as usize, 0);
    for buffer in from {
        if left == 0 {
            break;
        }
        if skip >= buffer.iov_len {
            skip -= buffer.iov_len;
            continue;
        }
        let iov_len = left.min(buffer.iov_len - skip);
        *to.get_mut(count)? = iovec {
            iov_base: buffer.iov_base.wrapping_byte_add(skip),
            iov_len,
        };
        count += 1;
        left -= iov_len;
        skip = 0;
    }
    Some(count)
}
