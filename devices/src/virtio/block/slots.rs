//! Requests in flight. A slot owns all that its completion needs, so nothing is read from guest
//! memory a second time.

use std::collections::VecDeque;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::time::Instant;

use libc::iovec;

use vm_memory::VolatileSlice;

use crate::GuestMemory;
use crate::virtio::block::file::{DiskFile, Op};
use crate::virtio::block::image::{Access, FlushState, Image, Place, resolve};
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
    /// Position of its queue among the handler's.
    pub(super) queue: usize,
    pub(super) head: u16,
    pub(super) request: Request,
    /// The length for the used ring if the request succeeds.
    pub(super) written: u32,
    pub(super) started: Instant,
    status: *mut u8,
    /// What is done for the request now.
    pub(super) op: Op,
    /// Where in the disk `op` goes on, and how much of it is left, bytes.
    pub(super) offset: u64,
    pub(super) left: u64,
    flush: FlushState,
    /// Writes are durable when they complete.
    pub(super) dsync: bool,
    /// The buffers left, in this slot's part of the arena.
    first: usize,
    end: usize,
    part: Part,
}

/// What the engine does at once: as much of the request as is in one place.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    /// Number of the image's file.
    pub(super) file: u16,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Where its buffers end, and how many bytes of the last do not belong to it.
    end: usize,
    rest: usize,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Look where it goes on.
    Again,
    /// The part that the slot has is for the engine.
    Part,
    Done,
    /// The operation failed with this error number.
    Failed(i32),
}

impl Step {
    pub(super) fn failed(error: &io::Error) -> Self {
        Self::Failed(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// A request that is to have a slot.
pub(super) struct Begun<'a> {
    /// Position of its queue among the handler's.
    pub(super) queue: usize,
    pub(super) chain: &'a Chain,
    pub(super) request: Request,
    /// The length for the used ring if it succeeds.
    pub(super) written: u32,
    pub(super) started: Instant,
    pub(super) dsync: bool,
}

/// What a request begins with: the operation, and where in the disk and on how many bytes.
fn operation(request: &Request) -> (Op, u64, u64) {
    match *request {
        Request::Read { offset, len } => (Op::Read, offset, u64::from(len)),
        Request::Write { offset, len } => (Op::Write, offset, u64::from(len)),
        Request::Flush | Request::GetId => (Op::Sync, 0, 0),
        Request::Discard { offset, len } => (Op::Punch, offset, len),
        Request::WriteZeroes { offset, len, unmap } => {
            (if unmap { Op::Punch } else { Op::Zero }, offset, len)
        }
    }
}

impl Slot {
    /// Finds the next part. A hole is read at once.
    fn aim(&mut self, image: &dyn Image, buffers: &mut [iovec]) -> io::Result<Step> {
        let access = match self.op {
            Op::Sync => return self.aim_flush(image),
            Op::Read => Access::Read,
            Op::Write => Access::Write,
            Op::Punch if matches!(self.request, Request::Discard { .. }) => Access::Discard,
            Op::Punch | Op::Zero => Access::Zero,
        };
        let extent = resolve(image, access, self.offset, self.left)?;
        let Place::File { file, offset } = extent.place else {
            return Ok(self.skip(extent.len, buffers));
        };
        self.part = Part {
            file,
            offset,
            len: extent.len,
            end: self.end,
            rest: 0,
        };
        if extent.len < self.left && self.first < self.end {
            self.cut(buffers);
        }
        Ok(Step::Part)
    }

    fn aim_flush(&mut self, image: &dyn Image) -> io::Result<Step> {
        if self.flush.is_endless() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let next = image.flush(&mut self.flush)?;
        if next.is_some() || self.flush.has_waited() {
            // After a wait, too: of what is lost the kernel tells one of two flushes.
            let mut files = image.files().iter();
            files.try_for_each(DiskFile::refuse_if_lost)?;
        }
        let Some(file) = next else {
            return Ok(Step::Done);
        };
        self.part = Part {
            file,
            ..Part::default()
        };
        Ok(Step::Part)
    }

    /// Lets the part's buffers end where it does.
    fn cut(&mut self, buffers: &mut [iovec]) {
        let mut left = self.part.len as usize;
        for (at, buffer) in (self.first..).zip(&mut buffers[self.first..self.end]) {
            if left <= buffer.iov_len {
                self.part.end = at + 1;
                self.part.rest = buffer.iov_len - left;
                buffer.iov_len = left;
                return;
            }
            left -= buffer.iov_len;
        }
    }

    /// Undoes [`Slot::cut`].
    fn join(&mut self, buffers: &mut [iovec]) {
        if self.part.rest > 0 {
            buffers[self.part.end - 1].iov_len += self.part.rest;
            self.part.rest = 0;
        }
    }

    /// Reads a hole of `len` bytes, or leaves it as it is.
    fn skip(&mut self, len: u64, buffers: &mut [iovec]) -> Step {
        if self.op == Op::Read {
            zero(&buffers[self.first..self.end], len as usize);
        }
        self.consume(len, buffers)
    }

    /// Takes note of a completed part: `result` as the system call returns it, negative error
    /// numbers included.
    fn advance(&mut self, result: i32, buffers: &mut [iovec]) -> Step {
        self.join(buffers);
        match (self.op, result) {
            (_, error) if error == -libc::EINTR || error == -libc::EAGAIN => Step::Again,
            (_, error) if error < 0 => Step::Failed(-error),
            // The image is shorter than it was.
            (Op::Read | Op::Write, 0) => Step::Failed(libc::EIO),
            (Op::Read | Op::Write, done) => self.consume(done as u64, buffers),
            (Op::Punch | Op::Zero, _) => self.consume(self.part.len, buffers),
            (Op::Sync, _) => {
                self.flush.waited();
                Step::Again
            }
        }
    }

    /// Goes on after `done` bytes.
    fn consume(&mut self, done: u64, buffers: &mut [iovec]) -> Step {
        self.offset += done;
        self.left = self.left.saturating_sub(done);
        if self.left == 0 {
            return self.after_last();
        }
        let mut rest = done as usize;
        while let Some(buffer) = buffers[..self.end].get_mut(self.first) {
            if rest < buffer.iov_len {
                buffer.iov_base = buffer.iov_base.wrapping_byte_add(rest);
                buffer.iov_len -= rest;
                break;
            }
            rest -= buffer.iov_len;
            self.first += 1;
        }
        Step::Again
    }

    /// What follows the last byte: what is to be durable is made so. A write's own bytes are.
    fn after_last(&mut self) -> Step {
        match self.request {
            Request::Write { .. } if self.dsync => self.flush = FlushState::of_durable_data(),
            Request::WriteZeroes { .. } if self.dsync => self.flush = FlushState::default(),
            _ => return Step::Done,
        }
        self.op = Op::Sync;
        Step::Again
    }
}

/// Zeroes the first `len` bytes of `buffers`.
fn zero(buffers: &[iovec], len: usize) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut left = len;
    for buffer in buffers {
        let count = left.min(buffer.iov_len);
        left -= count;
        // SAFETY: the iovec is a range of guest memory that the slots keep mapped.
        let buffer = unsafe { VolatileSlice::new(buffer.iov_base.cast(), count) };
        let mut at = 0;
        while at < count {
            let piece = ZEROS.len().min(count - at);
            if let Ok(part) = buffer.subslice(at, piece) {
                part.copy_from(&ZEROS[..piece]);
            }
            at += piece;
        }
    }
}

/// A fixed number of slots and their buffers. Storage is reserved at once but not touched before it
/// is used, and the slot freed last is used next: a quiet disk needs little memory.
pub(super) struct Slots {
    slots: Vec<Slot>,
    buffers: Vec<[iovec; SLOT_BUFFERS]>,
    free: Vec<u16>,
    /// Those that wait until the machine goes on.
    held: VecDeque<u16>,
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
            held: VecDeque::with_capacity(count),
            count,
            _memory: memory,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < self.count
    }

    /// Requests that the engine will end by itself.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() - self.held.len()
    }

    /// Lets the request in slot `index` wait.
    pub(super) fn hold(&mut self, index: u16) {
        self.held.push_back(index);
    }

    /// How many wait.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// The slot whose request has waited longest, which waits no more.
    pub(super) fn let_go(&mut self) -> Option<u16> {
        self.held.pop_front()
    }

    /// Puts a request into a free slot, with its data, which starts `skip` bytes into `buffers`. `None` if there is
    /// no room, or there are too many buffers. The slot is written in place: it is too large to be handed around.
    pub(super) fn take(&mut self, begun: &Begun<'_>, buffers: &[iovec], skip: u32) -> Option<u16> {
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
        let last = begun.chain.writable().last()?;
        let (op, offset, left) = operation(&begun.request);
        let end = match op {
            Op::Read | Op::Write => copy_part(buffers, skip, left, &mut self.buffers[index])?,
            _ => 0,
        };
        let slot = Slot {
            queue: begun.queue,
            head: begun.chain.head(),
            request: begun.request,
            written: begun.written,
            started: begun.started,
            status: last.iov_base.cast::<u8>().wrapping_add(last.iov_len - 1),
            op,
            offset,
            left,
            flush: FlushState::default(),
            dsync: begun.dsync,
            first: 0,
            end,
            part: Part::default(),
        };
        match self.slots.get_mut(index) {
            Some(old) => {
                *old = slot;
                self.free.pop();
            }
            None => self.slots.push(slot),
        }
        Some(index as u16)
    }

    /// The request in slot `index`.
    pub(super) fn get(&self, index: u16) -> Option<&Slot> {
        self.slots.get(usize::from(index))
    }

    /// The same, to change it.
    pub(super) fn get_mut(&mut self, index: u16) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(index))
    }

    /// The buffers that the request in slot `index` has left.
    pub(super) fn buffers(&self, index: u16) -> &[iovec] {
        let index = usize::from(index);
        let slot = &self.slots[index];
        &self.buffers[index][slot.first..slot.end]
    }

    /// The part of the request in slot `index` that is for the engine, and its buffers.
    pub(super) fn part(&self, index: u16) -> Option<(&Slot, &Part, &[iovec])> {
        let slot = self.slots.get(usize::from(index))?;
        let buffers = &self.buffers[usize::from(index)];
        Some((
            slot,
            &slot.part,
            &buffers[slot.first..slot.part.end.max(slot.first)],
        ))
    }

    /// See [`Slot::aim`].
    pub(super) fn aim(&mut self, index: u16, image: &dyn Image) -> Step {
        let index = usize::from(index);
        let aimed = self.slots[index].aim(image, &mut self.buffers[index]);
        aimed.unwrap_or_else(|error| Step::failed(&error))
    }

    /// What follows the transfer of all of the data in slot `index`, done without the engine. Its
    /// bytes are not durable yet.
    pub(super) fn flush(&mut self, index: u16) -> Step {
        let slot = &mut self.slots[usize::from(index)];
        let step = slot.after_last();
        slot.flush = FlushState::default();
        step
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
