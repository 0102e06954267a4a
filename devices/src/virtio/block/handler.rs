//! Serves one request queue of a block device on its worker thread.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tracing::error;

use crate::thread::ThreadRole;
use crate::virtio::block::bounce::Bounce;
use crate::virtio::block::image::Image;
use crate::virtio::block::image::Op;
use crate::virtio::block::prompt::Prompt;
use crate::virtio::block::request::{HEADER_SIZE, ID_SIZE, Request, Rules, Status};
use crate::virtio::block::slots::{Slot, Slots, Step};
use crate::virtio::block::stats::{Counted, Counters};
use crate::virtio::block::uring::Ring;
use crate::virtio::chain::Chain;
use crate::virtio::patience::Patience;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{QueueError, QueueHandler, Watch};

/// Requests done one by one before the worker looks at its commands again.
const SYNC_BUDGET: u16 = 16;

/// Requests handed over at a time where the page cache answers during the call: so the driver sees
/// the first answers, and makes new requests, while the next are worked on.
const CACHED_BURST: u16 = 8;

/// What a device's handlers share with it.
pub(super) struct Shared {
    pub(super) image: Image,
    pub(super) rules: Rules,
    pub(super) id: [u8; ID_SIZE],
    pub(super) counters: Counters,
    /// Rings that no handler uses now.
    pub(super) rings: Mutex<Vec<Ring>>,
}

/// Serves one queue.
pub(super) struct BlockHandler {
    queue: VirtQueue,
    chain: Chain,
    slots: Slots,
    /// `None`: requests are done one at a time by system calls that wait.
    ring: Option<Ring>,
    bounce: Bounce,
    /// Writes are durable when they complete.
    dsync: bool,
    /// There may be chains that no kick will announce, because there was no slot for them.
    stalled: bool,
    /// Requests to take before they are submitted.
    burst: u16,
    patience: Patience,
    prompt: Prompt,
    shared: Arc<Shared>,
}

impl BlockHandler {
    pub(super) fn new(queue: VirtQueue, dsync: bool, shared: Arc<Shared>) -> Self {
        let ring = shared
            .rings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        Self {
            chain: queue.new_chain(),
            slots: Slots::new(queue.size(), Arc::clone(queue.memory())),
            burst: queue.size(),
            patience: Patience::default(),
            prompt: Prompt::default(),
            queue,
            ring,
            bounce: Bounce::default(),
            dsync,
            stalled: false,
            shared,
        }
    }

    /// Takes requests until there are none, or no slots, or it is time to look at other events.
    fn serve(&mut self) -> Result<(), QueueError> {
        let mut budget = if self.ring.is_some() {
            self.queue.size()
        } else {
            SYNC_BUDGET
        };
        self.stalled = false;
        loop {
            self.queue.disable_kicks();
            let taken = self.take(&mut budget)?;
            self.submit()?;
            self.reap()?;
            self.queue.notify();
            if taken > 0 {
                self.choose_burst();
            }
            if budget == 0 {
                self.queue.kick_self();
                return Ok(());
            }
            if !self.slots.has_room() {
                self.stalled = true;
                return Ok(());
            }
            if self.next_is_near()? || self.queue.enable_kicks() {
                continue;
            }
            return Ok(());
        }
    }

    /// Starts at most a burst of requests; how many.
    fn take(&mut self, budget: &mut u16) -> Result<u16, QueueError> {
        let now = Instant::now();
        let limit = self.burst.min(*budget);
        let mut taken = 0;
        while taken < limit && self.slots.has_room() && self.queue.next(&mut self.chain)? {
            taken += 1;
            self.start(now)?;
        }
        *budget -= taken;
        Ok(taken)
    }

    /// Small bursts where requests are done by the time they are submitted, else all at once: a
    /// device works best on many.
    fn choose_burst(&mut self) {
        self.burst = match self.slots.in_flight() {
            0 => CACHED_BURST.min(self.queue.size()),
            _ => self.queue.size(),
        };
    }

    /// Whether a request is there, or comes so soon that sleeping is not worth it. With requests in
    /// flight the thread must be found by their completions.
    fn next_is_near(&mut self) -> Result<bool, QueueError> {
        let queue = &self.queue;
        if queue.has_available() || self.slots.in_flight() > 0 {
            return Ok(queue.has_available());
        }
        self.patience.wait(|| Ok(queue.has_available()))
    }

    /// Starts the request in `self.chain`, or answers it at once.
    fn start(&mut self, now: Instant) -> Result<(), QueueError> {
        if self.chain.writable_len() == 0 {
            // Nowhere to put even a status.
            self.shared.counters.failed();
            self.queue.push_used(self.chain.head(), 0);
            return Ok(());
        }
        match Request::parse(&self.chain, &self.shared.rules) {
            Ok(Request::GetId) => {
                let space = self.chain.writable_len() - 1;
                let len = ID_SIZE.min(space as usize);
                self.chain.write_at(0, &self.shared.id[..len]);
                self.answer(
                    Status::Ok,
                    if len as u32 == space {
                        space + 1
                    } else {
                        len as u32
                    },
                );
                Ok(())
            }
            Ok(request) => self.start_io(request, now),
            Err(status) => {
                self.shared.counters.failed();
                self.answer_failure(status);
                Ok(())
            }
        }
    }

    fn start_io(&mut self, request: Request, now: Instant) -> Result<(), QueueError> {
        let (buffers, skip) = match request {
            Request::Read { .. } => (self.chain.writable(), 0),
            _ => (self.chain.readable(), HEADER_SIZE),
        };
        let written = match request {
            Request::Read { len, .. } => len + 1,
            _ => status_only(&self.chain),
        };
        let slot = Slot::new(&self.chain, request, written, now, self.dsync);
        let index = slot.and_then(|slot| self.slots.take(slot, buffers, skip));
        let Some(index) = index else {
            self.shared.counters.failed();
            self.answer_failure(Status::IoErr);
            return Ok(());
        };
        if !self.aligned(index) {
            let result = self.bounce(request);
            let step = result.map_or_else(|error| failed(&error), |()| Step::Done);
            self.finish(index, step);
            return Ok(());
        }
        let at_once = self.is_done_at_once(index, now);
        match &mut self.ring {
            Some(ring) if !at_once => ring.push(index, &self.slots).map_err(QueueError::Backend),
            Some(_) => {
                let step = self.slots.perform(index, &self.shared.image);
                self.finish(index, step);
                Ok(())
            }
            None => {
                let step = self.slots.perform(index, &self.shared.image);
                self.finish(index, step);
                // The next request may take long: this one shall not wait for it.
                self.queue.notify();
                Ok(())
            }
        }
    }

    /// Whether this thread shall do the request in slot `index` itself.
    fn is_done_at_once(&self, index: u16, now: Instant) -> bool {
        let is_cached_write = |slot: &Slot| slot.op == Op::Write && !slot.dsync;
        self.shared.image.is_cached()
            && self.slots.get(index).is_some_and(|(slot, _)| {
                is_cached_write(slot) && self.prompt.expects(slot.offset, slot.left, now)
            })
    }

    fn aligned(&self, index: u16) -> bool {
        self.slots
            .get(index)
            .is_none_or(|(_, buffers)| self.shared.image.takes(buffers))
    }

    fn bounce(&mut self, request: Request) -> io::Result<()> {
        let (image, chain) = (&self.shared.image, &self.chain);
        match request {
            Request::Read { offset, len } => self.bounce.read(image, chain, offset, len),
            Request::Write { offset, len } => {
                self.bounce.write(image, chain, HEADER_SIZE, offset, len)?;
                if self.dsync {
                    image.file().sync_data()
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        }
    }

    fn submit(&mut self) -> Result<(), QueueError> {
        match &mut self.ring {
            Some(ring) => ring.submit(0).map_err(QueueError::Backend),
            None => Ok(()),
        }
    }

    /// Answers all requests that have completed.
    fn reap(&mut self) -> Result<(), QueueError> {
        loop {
            while let Some(ring) = &mut self.ring
                && let Some((index, step)) = ring
                    .complete(&mut self.slots)
                    .map_err(QueueError::Backend)?
            {
                self.finish(index, step);
            }
            match &mut self.ring {
                None => return Ok(()),
                Some(ring) => {
                    if !ring.has_queued() {
                        return Ok(());
                    }
                    ring.submit(0).map_err(QueueError::Backend)?;
                }
            }
        }
    }

    /// Answers the request in slot `index`, unless it goes on.
    fn finish(&mut self, index: u16, step: Step) {
        let Some((slot, _)) = self.slots.get(index) else {
            return;
        };
        let (head, request, written, started) =
            (slot.head, slot.request, slot.written, slot.started);
        let status = match step {
            Step::Again => return,
            Step::Done => Status::Ok,
            Step::Failed(errno) => self.recover(request, errno),
        };
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
        self.queue.push_used(head, written);
    }

    /// What a failed operation means for its request.
    fn recover(&self, request: Request, errno: i32) -> Status {
        match request {
            Request::WriteZeroes { offset, len, .. } if errno == libc::EOPNOTSUPP => {
                let image = &self.shared.image;
                let mut result = image.zero_slowly(offset, len);
                if self.dsync {
                    result = result.and_then(|()| image.file().sync_data());
                }
                result.map_or(Status::IoErr, |()| Status::Ok)
            }
            Request::Discard { .. } if errno == libc::EOPNOTSUPP => Status::Unsupported,
            _ => Status::IoErr,
        }
    }

    /// Answers the request in `self.chain` with a status and nothing else.
    fn answer_failure(&mut self, status: Status) {
        let written = status_only(&self.chain);
        self.answer(status, written);
    }

    fn answer(&mut self, status: Status, written: u32) {
        self.chain
            .write_at(self.chain.writable_len() - 1, &[status as u8]);
        self.queue.push_used(self.chain.head(), written);
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

fn failed(error: &io::Error) -> Step {
    Step::Failed(error.raw_os_error().unwrap_or(libc::EIO))
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

impl QueueHandler for BlockHandler {
    fn role(&self) -> ThreadRole {
        ThreadRole::Block
    }

    fn queues(&self) -> &[VirtQueue] {
        std::slice::from_ref(&self.queue)
    }

    fn fds(&self) -> Vec<Watch<'_>> {
        let rings = self.ring.iter();
        rings.map(|ring| Watch::input(ring.fd(), 0)).collect()
    }

    fn kicked(&mut self, _position: usize) -> Result<(), QueueError> {
        self.serve()
    }

    fn readable(&mut self, _token: u16) -> Result<(), QueueError> {
        self.reap()?;
        if self.slots.in_flight() == 0 {
            // The driver is about to see its last completion: its next requests need no kick.
            self.queue.disable_kicks();
            self.stalled = true;
        }
        self.queue.notify();
        if self.stalled { self.serve() } else { Ok(()) }
    }

    fn drain(&mut self) {
        while self.slots.in_flight() > 0 {
            let waited = match &mut self.ring {
                Some(ring) => ring.submit(1).map_err(QueueError::Backend),
                None => Ok(()),
            };
            if let Err(error) = waited.and_then(|()| self.reap()) {
                error!(%error, in_flight = self.slots.in_flight(), "cannot wait for block requests");
                // The kernel may still write to the buffers, and guest memory outlives the ring;
                // a new ring would be needed to go on.
                self.ring = None;
                break;
            }
        }
        self.queue.notify();
    }
}

impl Drop for BlockHandler {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.take() {
            self.shared
                .rings
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(ring);
        }
    }
}
