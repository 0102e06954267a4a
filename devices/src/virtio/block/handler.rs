//! Serves request queues of a block device on a worker thread: takes chains, and gives them back.
//! What happens to a request in between is in [`io`].

mod io;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tracing::error;

use crate::virtio::block::bounce::Bounce;
use crate::virtio::block::engine::{Engine, Ring};
use crate::virtio::block::image::Image;
use crate::virtio::block::prompt::Prompt;
use crate::virtio::block::request::{ID_SIZE, Rules};
use crate::virtio::block::slots::Slots;
use crate::virtio::block::stats::Counters;
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
    pub(super) image: Box<dyn Image>,
    pub(super) rules: Rules,
    pub(super) id: [u8; ID_SIZE],
    pub(super) counters: Counters,
    /// Rings that no handler uses now.
    pub(super) rings: Mutex<Vec<Ring>>,
}

impl Shared {
    pub(super) fn rings(&self) -> std::sync::MutexGuard<'_, Vec<Ring>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one queue.
pub(super) struct BlockHandler {
    queue: VirtQueue,
    chain: Chain,
    slots: Slots,
    engine: Engine,
    bounce: Bounce,
    /// Writes are durable when they complete.
    dsync: bool,
    /// There may be chains that no kick will announce, because there was no slot for them.
    stalled: bool,
    /// Requests in flight were given up; nothing can be served any more.
    broken: bool,
    /// Requests to take before they are submitted.
    burst: u16,
    /// Bytes that the image can be written up to, as known to this burst.
    writable: Option<u64>,
    patience: Patience,
    prompt: Prompt,
    shared: Arc<Shared>,
}

impl BlockHandler {
    pub(super) fn new(queue: VirtQueue, dsync: bool, shared: Arc<Shared>) -> Self {
        let ring = shared.rings().pop();
        Self {
            chain: queue.new_chain(),
            slots: Slots::new(queue.size(), Arc::clone(queue.memory())),
            burst: queue.size(),
            writable: None,
            patience: Patience::default(),
            prompt: Prompt::default(),
            queue,
            engine: Engine(ring),
            bounce: Bounce::default(),
            dsync,
            stalled: false,
            broken: false,
            shared,
        }
    }

    /// Takes requests until there are none, or no slots, or it is time to look at other events.
    fn serve(&mut self) -> Result<(), QueueError> {
        let mut budget = if self.engine.waits() {
            SYNC_BUDGET
        } else {
            self.queue.size()
        };
        self.stalled = false;
        loop {
            self.queue.disable_kicks();
            let taken = self.take(&mut budget)?;
            self.engine.submit(0).map_err(QueueError::Backend)?;
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
        self.writable = None;
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

    /// Answers all requests that have completed.
    fn reap(&mut self) -> Result<(), QueueError> {
        loop {
            while let Some((index, result)) = self.engine.complete() {
                let step = self.slots.advance(index, result);
                self.go_on(index, step)?;
            }
            if !self.engine.has_queued() {
                return Ok(());
            }
            self.engine.submit(0).map_err(QueueError::Backend)?;
        }
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
        std::slice::from_ref(&self.queue)
    }

    fn fds(&self) -> Vec<Watch<'_>> {
        let rings = self.engine.0.iter();
        rings.map(|ring| Watch::input(ring.fd(), 0)).collect()
    }

    fn kicked(&mut self, _position: usize) -> Result<(), QueueError> {
        self.refuse_if_broken()?;
        self.serve()
    }

    fn readable(&mut self, _token: u16) -> Result<(), QueueError> {
        self.refuse_if_broken()?;
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
        self.queue.notify();
    }
}

impl Drop for BlockHandler {
    fn drop(&mut self) {
        if let Some(ring) = self.engine.0.take() {
            self.shared.rings().push(ring);
        }
    }
}
