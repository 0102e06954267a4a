//! Serves request queues of a block device on a worker thread: takes chains, and gives them back.
//! What happens to a request in between is in [`io`].

mod io;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::error;

use crate::virtio::block::bounce::Bounce;
use crate::virtio::block::engine::Engine;
use crate::virtio::block::errors::Errors;
use crate::virtio::block::image::Image;
use crate::virtio::block::prompt::Prompt;
use crate::virtio::block::request::{ID_SIZE, Rules};
use crate::virtio::block::rings::Rings;
use crate::virtio::block::slots::Slots;
use crate::virtio::block::stats::Counters;
use crate::virtio::block::{MAX_QUEUES, QUEUE_SIZE};
use crate::virtio::chain::Chain;
use crate::virtio::patience::Patience;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{QueueError, QueueHandler, Watch};

/// Requests done one by one before the worker looks at its commands again.
const SYNC_BUDGET: u16 = 16;

/// Requests handed over at a time where the page cache answers during the call: so the driver sees
/// the first answers, and makes new requests, while the next are worked on.
const CACHED_BURST: u16 = 8;

/// How long a worker relies on the size that the image's file had. To ask at each write is a tenth of a short one's time.
const SIZE_KNOWN_FOR: Duration = Duration::from_millis(1);

/// What a device's handlers share with it.
pub(super) struct Shared {
    pub(super) image: Box<dyn Image>,
    pub(super) rules: Rules,
    pub(super) id: [u8; ID_SIZE],
    pub(super) counters: Counters,
    pub(super) errors: Errors,
    pub(super) rings: Arc<Rings>,
}

/// Serves queues of a disk: one, unless there are more than rings.
pub(super) struct BlockHandler {
    queues: Vec<VirtQueue>,
    chain: Chain,
    slots: Slots,
    engine: Engine,
    bounce: Bounce,
    /// Writes are durable when they complete.
    dsync: bool,
    /// Bits of the queues that may have chains which no kick will announce, because there was no slot
    /// for them.
    stalled: u64,
    /// The machine stood still since requests were held.
    stood_still: bool,
    /// Requests in flight were given up; nothing can be served any more.
    broken: bool,
    /// Requests to take before they are submitted.
    burst: u16,
    /// Bytes that the image could be written up to when that was asked last, and when to forget that.
    writable: u64,
    forget_writable: Instant,
    patience: Patience,
    prompt: Prompt,
    shared: Arc<Shared>,
}

const _: () = assert!(MAX_QUEUES as u32 <= u64::BITS);

impl BlockHandler {
    /// A handler of `queues`, of which there is at least one.
    pub(super) fn new(queues: Vec<VirtQueue>, dsync: bool, shared: Arc<Shared>) -> Option<Self> {
        let largest = queues.iter().max_by_key(|queue| queue.size())?;
        let ring = shared.rings.pop();
        Some(Self {
            chain: largest.new_chain(),
            slots: Slots::new(QUEUE_SIZE, Arc::clone(largest.memory())),
            burst: QUEUE_SIZE,
            writable: 0,
            forget_writable: Instant::now(),
            patience: Patience::default(),
            prompt: Prompt::default(),
            queues,
            engine: Engine(ring),
            bounce: Bounce::default(),
            dsync,
            stalled: 0,
            stood_still: false,
            broken: false,
            shared,
        })
    }

    /// Takes requests of the queue at `position` until there are none, or no slots, or it is time to
    /// look at other events.
    fn serve(&mut self, position: usize) -> Result<(), QueueError> {
        let mut budget = if self.engine.waits() {
            SYNC_BUDGET
        } else {
            self.queues[position].size()
        };
        self.stalled &= !(1 << position);
        loop {
            self.queues[position].disable_kicks();
            let taken = self.take(position, &mut budget)?;
            self.engine.submit(0).map_err(QueueError::Backend)?;
            self.reap()?;
            self.notify();
            if taken > 0 {
                self.choose_burst();
            }
            if budget == 0 {
                self.queues[position].kick_self();
                return Ok(());
            }
            if !self.slots.has_room() {
                self.stalled |= 1 << position;
                return Ok(());
            }
            if self.next_is_near(position)? || self.queues[position].enable_kicks() {
                continue;
            }
            return Ok(());
        }
    }

    fn serve_stalled(&mut self) -> Result<(), QueueError> {
        let mut left = self.stalled;
        while left != 0 {
            let position = left.trailing_zeros();
            left &= !(1 << position);
            self.serve(position as usize)?;
        }
        Ok(())
    }

    /// Starts at most a burst of requests; how many.
    fn take(&mut self, position: usize, budget: &mut u16) -> Result<u16, QueueError> {
        let now = Instant::now();
        let limit = self.burst.min(*budget);
        let mut taken = 0;
        if self.forget_writable <= now {
            self.writable = 0;
            self.forget_writable = now + SIZE_KNOWN_FOR;
        }
        while taken < limit
            && self.slots.has_room()
            && self.queues[position].next(&mut self.chain)?
        {
            taken += 1;
            self.start(position, now)?;
        }
        *budget -= taken;
        Ok(taken)
    }

    /// Small bursts where requests are done by the time they are submitted, else all at once: a
    /// device works best on many.
    fn choose_burst(&mut self) {
        self.burst = match self.slots.in_flight() {
            0 => CACHED_BURST,
            _ => QUEUE_SIZE,
        };
    }

    /// Whether a request is there, or comes so soon that sleeping is not worth it. With requests in
    /// flight the thread must be found by their completions.
    fn next_is_near(&mut self, position: usize) -> Result<bool, QueueError> {
        let queues = &self.queues;
        let is_there = || queues[position].has_available();
        if !is_there() && self.slots.in_flight() == 0 {
            // One for another queue is announced, and shall not wait either.
            let any = || Ok(queues.iter().any(VirtQueue::has_available));
            self.patience.wait(any)?;
        }
        Ok(is_there())
    }

    fn notify(&mut self) {
        self.queues.iter_mut().for_each(VirtQueue::notify);
    }

    /// Answers all requests that have completed.
    fn reap(&mut self) -> Result<(), QueueError> {
        loop {
            while let Some((index, result)) = self.engine.complete() {
                let step = self.advance(index, result);
                self.go_on(index, step)?;
            }
            if !self.engine.has_queued() {
                return Ok(());
            }
            self.engine.submit(0).map_err(QueueError::Backend)?;
        }
    }

    /// Tries again what was held when the machine stopped for it.
    fn try_again(&mut self) -> Result<(), QueueError> {
        self.stood_still = false;
        let held = self.slots.held();
        if held == 0 {
            return Ok(());
        }
        self.writable = 0;
        for _ in 0..held {
            let Some(index) = self.slots.let_go() else {
                break;
            };
            self.shared.errors.release(1);
            self.resume(index)?;
        }
        self.engine.submit(0).map_err(QueueError::Backend)?;
        self.reap()?;
        self.notify();
        Ok(())
    }

    fn refuse_if_broken(&self) -> Result<(), QueueError> {
        if self.broken {
            return Err(QueueError::Backend(std::io::ErrorKind::BrokenPipe.into()));
        }
        Ok(())
    }
}

impl QueueHandler for BlockHandler {
    fn queues(&self) -> &[VirtQueue] {
        &self.queues
    }

    fn fds(&self) -> Vec<Watch<'_>> {
        let rings = self.engine.0.iter();
        rings.map(|ring| Watch::input(ring.fd(), 0)).collect()
    }

    fn kicked(&mut self, position: usize) -> Result<(), QueueError> {
        self.refuse_if_broken()?;
        if self.stood_still {
            self.try_again()?;
        }
        self.serve(position)
    }

    fn readable(&mut self, _token: u16) -> Result<(), QueueError> {
        self.refuse_if_broken()?;
        self.reap()?;
        if self.slots.in_flight() == 0 {
            // The driver is about to see its last completion: its next requests need no kick.
            self.queues.iter_mut().for_each(VirtQueue::disable_kicks);
            self.stalled = u64::MAX >> (u64::BITS as usize - self.queues.len());
        }
        self.notify();
        self.serve_stalled()
    }

    fn drain(&mut self) {
        while self.slots.in_flight() > 0 && !self.broken {
            let waited = self.engine.submit(1).map_err(QueueError::Backend);
            if let Err(error) = waited.and_then(|()| self.reap()) {
                let error = &error as &dyn std::error::Error;
                error!(
                    error,
                    in_flight = self.slots.in_flight(),
                    "cannot wait for block requests"
                );
                // The kernel may still write to the buffers, and guest memory outlives the ring; a
                // new ring would be needed to go on, and nobody could tell which requests are done.
                self.broken = true;
                self.engine.0 = None;
            }
        }
        self.notify();
        self.stood_still = true;
    }
}

impl Drop for BlockHandler {
    /// What is held then is given up: the driver has reset the device.
    fn drop(&mut self) {
        self.shared.errors.release(self.slots.held() as u32);
        if let Some(ring) = self.engine.0.take() {
            self.shared.rings.push(ring);
        }
    }
}
