//! A request from its chain to its status.

use std::time::Instant;

use crate::virtio::QueueError;
use crate::virtio::block::errors::Verdict;
use crate::virtio::block::file::{DiskFile, Op};
use crate::virtio::block::handler::BlockHandler;
use crate::virtio::block::request::{HEADER_SIZE, ID_SIZE, Request, Status};
use crate::virtio::block::slots::{Begun, Step};
use crate::virtio::block::stats::Counted;
use crate::virtio::chain::Chain;

impl BlockHandler {
    /// Starts the request in `self.chain`, which is of the queue at position `queue`, or answers it at
    /// once.
    pub(super) fn start(&mut self, queue: usize, now: Instant) -> Result<(), QueueError> {
        if self.chain.writable_len() == 0 {
            // Nowhere to put even a status.
            self.shared.counters.failed();
            self.queues[queue].push_used(self.chain.head(), 0);
            return Ok(());
        }
        match Request::parse(&self.chain, &self.shared.rules, self.shared.image.bytes()) {
            Ok(Request::GetId) => {
                self.tell_id(queue);
                Ok(())
            }
            Ok(request) => self.start_io(queue, request, now),
            Err(status) => {
                self.shared.counters.failed();
                self.answer_failure(queue, status);
                Ok(())
            }
        }
    }

    fn tell_id(&mut self, queue: usize) {
        let space = self.chain.writable_len() - 1;
        let len = ID_SIZE.min(space as usize);
        self.chain.write_at(0, &self.shared.id[..len]);
        let status = u32::from(len as u32 == space);
        self.answer(queue, Status::Ok, len as u32 + status);
    }

    fn start_io(&mut self, queue: usize, request: Request, now: Instant) -> Result<(), QueueError> {
        let (buffers, skip) = match request {
            Request::Read { .. } => (self.chain.writable(), 0),
            _ => (self.chain.readable(), HEADER_SIZE),
        };
        let written = match request {
            Request::Read { len, .. } => len + 1,
            _ => status_only(&self.chain),
        };
        let begun = Begun {
            queue,
            chain: &self.chain,
            request,
            written,
            started: now,
            dsync: self.dsync,
        };
        let Some(index) = self.slots.take(&begun, buffers, skip) else {
            self.shared.counters.failed();
            self.answer_failure(queue, Status::IoErr);
            return Ok(());
        };
        let step = if !self.fits(request) {
            Step::Failed(libc::EIO)
        } else if self.aligned(index) {
            Step::Again
        } else {
            self.bounce(index, request)
        };
        self.go_on(index, step)?;
        if self.engine.waits() {
            // The next request may take long: this one shall not wait for it.
            self.queues[queue].notify();
        }
        Ok(())
    }

    /// Goes on with the request in slot `index`, which failed before.
    pub(super) fn resume(&mut self, index: u16) -> Result<(), QueueError> {
        let Some(request) = self.slots.get(index).map(|slot| slot.request) else {
            return Ok(());
        };
        let step = match self.fits(request) {
            true => Step::Again,
            false => Step::Failed(libc::EIO),
        };
        self.go_on(index, step)
    }

    /// Whether a write ends where the image does, or before. The request ends within the disk, but
    /// somebody may have cut the file short.
    fn fits(&mut self, request: Request) -> bool {
        let Request::Write { offset, len } = request else {
            return true;
        };
        let end = offset + u64::from(len);
        if end > self.writable {
            // It may have grown.
            self.writable = self.shared.image.writable_bytes();
        }
        end <= self.writable
    }

    /// Takes the request in slot `index` as far as it goes without waiting for the kernel.
    pub(super) fn go_on(&mut self, index: u16, mut step: Step) -> Result<(), QueueError> {
        loop {
            step = match step {
                Step::Again => self.slots.aim(index, &*self.shared.image),
                Step::Part => {
                    let at_once = self.is_done_at_once(index);
                    let files = self.shared.image.files();
                    let begun = self.engine.begin(index, &self.slots, files, at_once);
                    match begun.map_err(QueueError::Backend)? {
                        Some(result) => self.advance(index, result),
                        None => return Ok(()),
                    }
                }
                Step::Done => {
                    self.finish(index, Status::Ok);
                    return Ok(());
                }
                Step::Failed(errno) => match self.recover(index, errno) {
                    Ok(step) => step,
                    Err(Status::IoErr) => {
                        self.fail(index, errno);
                        return Ok(());
                    }
                    Err(status) => {
                        self.finish(index, status);
                        return Ok(());
                    }
                },
            }
        }
    }

    /// Takes note of what the engine has made of the part in slot `index`.
    pub(super) fn advance(&mut self, index: u16, result: i32) -> Step {
        let step = self.slots.advance(index, result);
        if let (Step::Failed(_), Some((slot, part, _))) = (step, self.slots.part(index))
            && slot.op == Op::Sync
        {
            self.shared.image.files()[usize::from(part.file)].flush_failed();
        }
        step
    }

    /// Whether this thread shall do the part in slot `index` itself.
    fn is_done_at_once(&self, index: u16) -> bool {
        let files = self.shared.image.files();
        self.slots.part(index).is_some_and(|(slot, part, _)| {
            slot.op == Op::Write
                && !slot.dsync
                && files[usize::from(part.file)].is_cached()
                && self.prompt.expects(part.offset, part.len, slot.started)
        })
    }

    fn aligned(&self, index: u16) -> bool {
        let buffers = self.slots.buffers(index);
        let mut files = self.shared.image.files().iter();
        files.all(|file| file.takes(buffers))
    }

    /// Does a request whose buffers direct I/O refuses.
    fn bounce(&mut self, index: u16, request: Request) -> Step {
        let (image, chain) = (&*self.shared.image, &self.chain);
        let done = match request {
            Request::Read { offset, len } => self.bounce.read(image, chain, offset, len),
            Request::Write { offset, len } => {
                self.bounce.write(image, chain, HEADER_SIZE, offset, len)
            }
            _ => Ok(()),
        };
        match done {
            Ok(()) => self.slots.flush(index),
            Err(error) => Step::failed(&error),
        }
    }

    /// How a request goes on after a failed operation, or what it ends with.
    fn recover(&mut self, index: u16, errno: i32) -> Result<Step, Status> {
        let writable = self.shared.image.writable_bytes();
        let Some(slot) = self.slots.get_mut(index) else {
            return Err(Status::IoErr);
        };
        match (slot.request, slot.op) {
            (Request::Discard { .. }, Op::Punch) if errno == libc::EOPNOTSUPP => {
                Err(Status::Unsupported)
            }
            (Request::WriteZeroes { .. }, Op::Punch) if errno == libc::EOPNOTSUPP => {
                slot.op = Op::Zero;
                Ok(Step::Again)
            }
            (Request::WriteZeroes { .. }, Op::Zero)
                if errno == libc::EOPNOTSUPP && slot.offset + slot.left <= writable =>
            {
                Ok(self.zero_slowly(index))
            }
            _ => Err(Status::IoErr),
        }
    }

    /// Ends the request in slot `index`, which the host cannot do, or lets it wait.
    fn fail(&mut self, index: u16, errno: i32) {
        // What goes by the bounce buffer has its chain only now.
        let can_wait = self.aligned(index);
        let Some(slot) = self.slots.get(index) else {
            return;
        };
        // To try again, or to say that all went well, would be to lose in silence what the page cache has lost.
        // That can be a write, too, for which the image has to make something durable.
        let is_lost =
            slot.op != Op::Read && self.shared.image.files().iter().any(DiskFile::is_lost);
        let verdict = self.shared.errors.judge(slot, errno, can_wait && !is_lost);
        match verdict {
            Verdict::Hold => self.slots.hold(index),
            Verdict::Pass if !is_lost => self.finish(index, Status::Ok),
            Verdict::Pass | Verdict::Fail => self.finish(index, Status::IoErr),
        }
    }

    fn zero_slowly(&mut self, index: u16) -> Step {
        let Some((_, part, _)) = self.slots.part(index) else {
            return Step::Failed(libc::EIO);
        };
        let file = &self.shared.image.files()[usize::from(part.file)];
        match file.zero_slowly(part.offset, part.len) {
            Ok(()) => self.slots.advance(index, 0),
            Err(error) => Step::failed(&error),
        }
    }

    /// Answers the request in slot `index`.
    fn finish(&mut self, index: u16, status: Status) {
        let Some(slot) = self.slots.get(index) else {
            return;
        };
        let (queue, head) = (slot.queue, slot.head);
        let (request, written, started) = (slot.request, slot.written, slot.started);
        let counters = &self.shared.counters;
        let written = if status == Status::Ok {
            let (kind, bytes) = counted(&request);
            let time = started.elapsed();
            counters.succeeded(kind, bytes, time);
            if matches!(kind, Counted::Write) {
                self.prompt.took(started, time);
            }
            written
        } else {
            counters.failed();
            failed_len(&request, written)
        };
        self.slots.finish(index, status);
        self.queues[queue].push_used(head, written);
    }

    /// Answers the request in `self.chain` with a status and nothing else.
    fn answer_failure(&mut self, queue: usize, status: Status) {
        let written = status_only(&self.chain);
        self.answer(queue, status, written);
    }

    fn answer(&mut self, queue: usize, status: Status, written: u32) {
        self.chain
            .write_at(self.chain.writable_len() - 1, &[status as u8]);
        self.queues[queue].push_used(self.chain.head(), written);
    }
}

/// The length for the used ring if only the status was written: the driver may rely on that many
/// bytes from the start of the writable buffers.
fn status_only(chain: &Chain) -> u32 {
    if chain.writable_len() == 1 { 1 } else { 0 }
}

/// The same for a request that failed in the image. A read's data comes before its status.
fn failed_len(request: &Request, written: u32) -> u32 {
    match request {
        Request::Read { .. } => 0,
        _ => written,
    }
}

fn counted(request: &Request) -> (Counted, u64) {
    match *request {
        Request::Read { len, .. } => (Counted::Read, u64::from(len)),
        Request::Write { len, .. } => (Counted::Write, u64::from(len)),
        Request::Flush => (Counted::Flush, 0),
        Request::Discard { len, .. } | Request::WriteZeroes { len, .. } => (Counted::Discard, len),
        Request::GetId => (Counted::Other, 0),
    }
}
