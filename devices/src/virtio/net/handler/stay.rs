//! Staying awake between packets, or resting although they come.
//!
//! Putting the thread to sleep and waking it costs the sender of the next packet more than the packet
//! itself. So the thread looks for more for a moment before it goes to sleep, and the driver need not
//! kick meanwhile. And where packets come so fast that each wakes it again, it sleeps for a fixed
//! short time instead of until the next packet, and takes all that have come.

use std::time::{Duration, Instant};

use rustix::thread::{ClockId, Timespec, clock_nanosleep_relative};

use super::{PairHandler, TX};
use crate::virtio::QueueError;

/// Times that the thread stays before it looks at its other descriptors and commands.
const TURNS: usize = 64;
/// Looks into the transmit queue, which cost nothing, for each into the TAP.
const LOOKS: u32 = 16;
/// The kernel makes some 60 us of it (its default timer slack is 50 us): less than a network card
/// waits before it interrupts, and far less than it takes to fill a TAP's queue.
const REST: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1000,
};
/// A rest that finds fewer packets than this is the last one.
const WORTH: u64 = 8;
/// The rate of received packets from which on the thread rests: that many in such a time. Nobody who
/// waits for the answer to each gets so far.
const DENSE: u64 = 100;
const INTERVAL: Duration = Duration::from_millis(1);

/// Whether received packets come so fast that the thread rests between looks.
pub(super) struct Pace {
    dense: bool,
    /// Start of the interval, and the packets received until then.
    begin: Instant,
    received: u64,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            dense: false,
            begin: Instant::now(),
            received: 0,
        }
    }

    /// Whether to rest, when `received` packets have been received in all.
    fn is_dense(&mut self, received: u64, now: Instant) -> bool {
        let time = now.saturating_duration_since(self.begin);
        if time >= INTERVAL {
            let packets = received.saturating_sub(self.received);
            self.dense |= time < 2 * INTERVAL && packets >= DENSE;
            (self.begin, self.received) = (now, received);
        }
        self.dense
    }

    /// Takes note of how many packets were found after a rest.
    fn rested(&mut self, found: u64) {
        self.dense = found >= WORTH;
    }
}

impl PairHandler {
    /// Serves the queues as long as there is, or comes, more to do within moments. Afterwards the
    /// driver kicks, or the worker is woken.
    pub(super) fn stay(&mut self) -> Result<(), QueueError> {
        if !self.pairs.is_active(self.pair) {
            return Ok(());
        }
        for _ in 0..TURNS {
            // Somebody wakes us for what is left.
            if self.tx_left || self.rx_left {
                return Ok(());
            }
            self.queues[TX].disable_kicks();
            if !self.more_comes()? && !self.queues[TX].enable_kicks() {
                return Ok(());
            }
            // Enables kicks again, too.
            self.transmit()?;
        }
        self.wake();
        Ok(())
    }

    /// Waits a moment; whether there was something received or there is something to send.
    fn more_comes(&mut self) -> Result<bool, QueueError> {
        if self.pace.is_dense(self.received(), Instant::now()) {
            // Cut short by a signal at worst.
            let _ = clock_nanosleep_relative(ClockId::Monotonic, &REST);
            let found = self.receive_some()?;
            self.pace.rested(found);
            return Ok(found > 0 || self.queues[TX].has_available());
        }
        let mut patience = std::mem::take(&mut self.patience);
        let mut looks = 0;
        let found = patience.wait(|| {
            looks += 1;
            let is_there = self.queues[TX].has_available();
            Ok(is_there || looks % LOOKS == 0 && self.receive_some()? > 0)
        });
        self.patience = patience;
        found
    }

    /// Receives what is there; how many packets.
    fn receive_some(&mut self) -> Result<u64, QueueError> {
        let before = self.received();
        self.receive()?;
        Ok(self.received().saturating_sub(before))
    }

    fn received(&self) -> u64 {
        self.pairs.get(self.pair).counters.rx_packets.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_makes_it_rest_until_a_rest_finds_little() {
        let mut pace = Pace::new();
        let at = |ms| pace.begin + ms * INTERVAL;
        let [start, first, second, third] = [0, 1, 2, 3].map(at);
        assert!(!pace.is_dense(50, start));
        assert!(!pace.is_dense(DENSE - 1, first));
        assert!(pace.is_dense(2 * DENSE - 1, second));
        pace.rested(WORTH);
        assert!(pace.is_dense(2 * DENSE, second));
        pace.rested(WORTH - 1);
        assert!(!pace.is_dense(3 * DENSE - 2, third));
    }

    #[test]
    fn packets_of_a_long_time_are_no_flood() {
        let mut pace = Pace::new();
        let later = pace.begin + 1000 * INTERVAL;
        assert!(!pace.is_dense(1000, later));
    }
}
