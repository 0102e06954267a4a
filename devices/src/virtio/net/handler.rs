//! The worker of one queue pair; the first pair's serves the control queue too.

mod stay;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use self::stay::Pace;
use super::capture::Capture;
use super::control::Control;
use super::features::tap_offloads;
use super::pairs::Pairs;
use super::port::Port;
use super::rx::{Rx, RxEnd};
use super::stream::Transit;
use super::tx::{Tx, TxEnd};
use crate::irq::Irq;
use crate::pod_net::answers::{Answers, Protocol};
use crate::pod_net::guard::Guard;
use crate::virtio::patience::Patience;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{QueueError, QueueHandler, Watch};

/// Packets per direction and turn, so that neither direction waits long for the other.
const BUDGET: usize = 256;

/// Positions of the queues in [`PairHandler::queues`].
const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;

/// Tokens of the other descriptors.
const PORT: u16 = 0;
const WAKE: u16 = 1;
const TIMER: u16 = 2;

/// What handlers are made from, the same for all pairs of a NIC.
pub(super) struct Setup {
    pub(super) pairs: Arc<Pairs>,
    pub(super) features: u64,
    pub(super) mtu: u16,
    pub(super) answers: Arc<Answers>,
    pub(super) guard: Guard,
    pub(super) capture: Option<Arc<Capture>>,
    /// Pairs that get a handler.
    pub(super) available: u16,
    /// The same driver goes on after a restore.
    pub(super) resumed: bool,
    pub(super) config_irq: Arc<dyn Irq>,
}

/// Serves one queue pair.
pub(super) struct PairHandler {
    pair: u16,
    pairs: Arc<Pairs>,
    queues: Vec<VirtQueue>,
    rx: Rx,
    tx: Tx,
    control: Option<Control>,
    answers: Arc<Answers>,
    config_irq: Arc<dyn Irq>,
    resumed: bool,
    started: bool,
    /// The last turn left packets to receive.
    rx_left: bool,
    /// The last turn left packets to send.
    tx_left: bool,
    patience: Patience,
    pace: Pace,
    /// The last turn left commands.
    control_left: bool,
}

impl PairHandler {
    pub(super) fn new(
        setup: &Setup,
        pair: u16,
        rx: VirtQueue,
        tx: VirtQueue,
        control: Option<VirtQueue>,
        stream: Option<Transit>,
    ) -> Self {
        let Setup {
            pairs,
            features,
            mtu,
            answers,
            guard,
            capture,
            available,
            resumed,
            config_irq,
        } = setup;
        let (incoming, unsent) = stream.map(|state| (state.incoming, state.unsent)).unzip();
        Self {
            pair,
            pairs: Arc::clone(pairs),
            rx: Rx::new(&rx, *features, *mtu, incoming, capture.clone()),
            tx: Tx::new(&tx, *guard, Arc::clone(answers), unsent, capture.clone()),
            config_irq: Arc::clone(config_irq),
            answers: Arc::clone(answers),
            control: control
                .as_ref()
                .map(|queue| Control::new(queue, Arc::clone(pairs), *features, *available)),
            queues: [Some(rx), Some(tx), control]
                .into_iter()
                .flatten()
                .collect(),
            resumed: *resumed,
            started: false,
            rx_left: false,
            tx_left: false,
            patience: Patience::default(),
            pace: Pace::new(),
            control_left: false,
        }
    }

    /// What has to happen before packets, on this thread because of its seccomp filter.
    fn start(&mut self) -> Result<(), QueueError> {
        if self.started {
            return Ok(());
        }
        self.started = true;
        if self.pair == 0 {
            self.take_over_port().map_err(QueueError::Backend)?;
        }
        Ok(())
    }

    /// A TAP may have been left by another driver, with other features.
    fn take_over_port(&mut self) -> io::Result<()> {
        let port = &self.pairs.get(0).port;
        port.set_offloads(tap_offloads(self.pairs.offloads()))?;
        self.pairs.set_active(self.pairs.active())?;
        if let Port::Tap(tap) = port
            && !self.resumed
        {
            self.rx.discard_stale(tap);
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), QueueError> {
        if !self.pairs.is_active(self.pair) {
            return Ok(());
        }
        let pair = self.pairs.get(self.pair);
        let link_up = self.pairs.link_up();
        let queue = &mut self.queues[RX];
        let end = self
            .rx
            .run(queue, &pair.port, link_up, &pair.counters, BUDGET)?;
        self.rx_left = end == RxEnd::Budget;
        match end {
            RxEnd::Budget => self.wake(),
            RxEnd::Lost => self.lose_link(),
            RxEnd::Empty | RxEnd::Starved => {}
        }
        Ok(())
    }

    fn transmit(&mut self) -> Result<(), QueueError> {
        let pair = self.pairs.get(self.pair);
        let link_up = self.pairs.link_up();
        let queue = &mut self.queues[TX];
        let end = self.tx.run(
            queue,
            &pair.port,
            &mut self.rx,
            link_up,
            &pair.counters,
            BUDGET,
        )?;
        self.tx_left = end != TxEnd::Empty;
        match end {
            TxEnd::Budget => self.wake(),
            TxEnd::Lost => self.lose_link(),
            TxEnd::Empty | TxEnd::Blocked => {}
        }
        // Most turns have no answer in them, and the TAP's own event covers the rest.
        if self.rx.has_answer() {
            self.receive()
        } else {
            Ok(())
        }
    }

    fn serve_control(&mut self) -> Result<(), QueueError> {
        if let (Some(control), Some(queue)) = (&mut self.control, self.queues.get_mut(CONTROL)) {
            self.control_left = control.run(queue)?;
            if self.control_left {
                self.wake();
            }
        }
        Ok(())
    }

    /// The stream's peer is gone: the machine goes on without this network.
    fn lose_link(&mut self) {
        if let Port::Stream(stream) = &self.pairs.get(self.pair).port
            && stream.lose()
        {
            tracing::error!("the network's backend is gone; the link is down for good");
            self.config_irq.raise();
        }
        // The guest's packets are dropped from now on.
        self.wake();
    }

    /// Tells the guest that its router is still there.
    fn advertise(&mut self) -> Result<(), QueueError> {
        let Some(timer) = self.timer() else {
            return Ok(());
        };
        // Starts the next interval; what it reads, how many have passed, is of no interest.
        let _ = rustix::io::read(timer, &mut [0; 8]);
        if let (Some(ipv6), Some(buffer)) = (&self.answers.ipv6, self.rx.answer_buffer())
            && let Some(len) = ipv6.advertise(buffer)
        {
            self.rx.queue_answer(Protocol::Router, len);
            let counters = &self.pairs.get(self.pair).counters;
            counters.answers(Protocol::Router).add(1);
        }
        self.receive()
    }

    /// The timer of advertisements, which the first pair sends.
    fn timer(&self) -> Option<BorrowedFd<'_>> {
        let timer = self.answers.timer.as_ref().filter(|_| self.pair == 0);
        timer.map(AsFd::as_fd)
    }

    /// Makes the worker call [`QueueHandler::readable`] after everything that is ready now.
    fn wake(&self) {
        self.pairs.get(self.pair).wake.wake();
    }
}

impl QueueHandler for PairHandler {
    fn queues(&self) -> &[VirtQueue] {
        &self.queues
    }

    fn fds(&self) -> Vec<Watch<'_>> {
        let pair = self.pairs.get(self.pair);
        let port = pair.port.file().as_fd();
        let port = match pair.port {
            Port::Tap(_) => Watch::input(port, PORT),
            Port::Stream(_) => Watch::both(port, PORT),
        };
        let timer = self.timer().map(|timer| Watch::input(timer, TIMER));
        [port, Watch::input(pair.wake.as_fd(), WAKE)]
            .into_iter()
            .chain(timer)
            .collect()
    }

    fn kicked(&mut self, position: usize) -> Result<(), QueueError> {
        self.start()?;
        match position {
            RX => self.receive(),
            TX => {
                self.transmit()?;
                self.stay()
            }
            _ => self.serve_control(),
        }
    }

    fn readable(&mut self, token: u16) -> Result<(), QueueError> {
        self.start()?;
        if token == TIMER {
            return self.advertise();
        }
        self.receive()?;
        if self.tx_left {
            self.transmit()?;
        }
        if token == WAKE && self.control_left {
            self.serve_control()?;
        }
        self.stay()
    }

    /// Nothing is ever in flight: the kernel has copied a packet when a call returns. Buffers that were
    /// held ready for packets are the guest's again.
    fn drain(&mut self) {
        let queue = &mut self.queues[RX];
        self.rx.release(queue);
        queue.notify();
    }
}

impl Drop for PairHandler {
    fn drop(&mut self) {
        if let Port::Stream(stream) = &self.pairs.get(self.pair).port
            && let (Some(incoming), Some(unsent)) = (self.rx.take_incoming(), self.tx.take_unsent())
        {
            stream.give_back(Transit { incoming, unsent });
        }
    }
}
