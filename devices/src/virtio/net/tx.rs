//! The transmit path of one queue pair: guest to TAP.

use std::fs::File;
use std::io::ErrorKind;
use std::sync::Arc;

use super::answers::{Answer, Answers, Protocol};
use super::features::MAX_PACKET;
use super::frame::{self, Bytes, Stop};
use super::guard::{Guard, Offence};
use super::outgoing::{MAX_LOOK, Outgoing};
use super::rx::Rx;
use super::stats::PairCounters;
use super::tap::HEADER_SIZE;
use crate::virtio::QueueError;
use crate::virtio::chain::Chain;
use crate::virtio::queue::VirtQueue;

/// Give buffers back with an interrupt at least this often, packets.
const NOTIFY_EVERY: usize = 64;

/// Shortest Ethernet frame that the TAP takes, bytes.
const MIN_FRAME: usize = 14;

/// Transmit state of one queue pair.
pub(super) struct Tx {
    chain: Chain,
    outgoing: Outgoing,
    guard: Guard,
    answers: Arc<Answers>,
}

/// What is to become of a packet.
enum Verdict {
    Send,
    Drop(Offence),
    Ask(Protocol),
}

impl Tx {
    pub(super) fn new(queue: &VirtQueue, guard: Guard, answers: Arc<Answers>) -> Self {
        Self {
            chain: queue.new_chain(),
            outgoing: Outgoing::new(usize::from(queue.size())),
            guard,
            answers,
        }
    }

    /// Sends up to `budget` packets, up to the first that is answered; true if some may be left.
    /// Answers made here go to `rx`.
    pub(super) fn run(
        &mut self,
        queue: &mut VirtQueue,
        tap: &File,
        rx: &mut Rx,
        link_up: bool,
        counters: &PairCounters,
        budget: usize,
    ) -> Result<bool, QueueError> {
        let mut count = 0;
        loop {
            queue.disable_kicks();
            while queue.next(&mut self.chain)? {
                let answered = link_up && self.send(tap, rx, counters);
                if !link_up {
                    counters.tx_drops.add(1);
                }
                queue.complete(self.chain.head(), 0);
                count += 1;
                if count == budget || answered {
                    queue.notify();
                    return Ok(true);
                }
                if count % NOTIFY_EVERY == 0 {
                    queue.notify();
                }
            }
            queue.notify();
            if !queue.enable_kicks() {
                return Ok(false);
            }
        }
    }

    /// Deals with the packet in `chain`; true if the guest is to receive an answer first.
    fn send(&mut self, tap: &File, rx: &mut Rx, counters: &PairCounters) -> bool {
        let len = self.chain.readable_len() as usize;
        if !(HEADER_SIZE + MIN_FRAME..=MAX_PACKET).contains(&len) {
            counters.tx_errors.add(1);
            return false;
        }
        self.outgoing.load(&self.chain);
        match self.judge(len - HEADER_SIZE) {
            Verdict::Send => {}
            Verdict::Drop(Offence::Impersonation) => {
                counters.impersonation_drops.add(1);
                return false;
            }
            Verdict::Drop(Offence::Spoof) => {
                counters.spoof_drops.add(1);
                return false;
            }
            Verdict::Ask(protocol) => match self.ask(protocol, rx, counters) {
                Answer::Pass => {}
                Answer::Silence => return false,
                Answer::Frame(_) => return true,
            },
        }
        match self.outgoing.write_to_tap(tap, &self.chain) {
            Ok(()) => {
                counters.tx_packets.add(1);
                counters.tx_bytes.add((len - HEADER_SIZE) as u64);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => counters.tx_drops.add(1),
            Err(_) => counters.tx_errors.add(1),
        }
        false
    }

    /// Looks at as much of a frame of `len` bytes as it takes.
    fn judge(&mut self, len: usize) -> Verdict {
        match self.look(len) {
            Ok(verdict) => return verdict,
            Err(Stop::More) => self.outgoing.load_more(&self.chain),
            Err(stop) => return self.stopped(stop, len),
        }
        self.look(len)
            .unwrap_or_else(|stop| self.stopped(stop, len))
    }

    fn look(&self, len: usize) -> Result<Verdict, Stop> {
        let bytes = Bytes::new(self.outgoing.frame(), len);
        let frame = frame::parse(bytes)?;
        if let Some(offence) = self.guard.judge(self.outgoing.header(), bytes, &frame)? {
            return Ok(Verdict::Drop(offence));
        }
        let asked = self.answers.wants(bytes, &frame)?;
        Ok(asked.map_or(Verdict::Send, Verdict::Ask))
    }

    fn stopped(&self, stop: Stop, len: usize) -> Verdict {
        let bytes = Bytes::new(self.outgoing.frame(), len);
        let offence = match stop {
            Stop::End(end) => self.guard.judge_cut(self.outgoing.header(), bytes, end),
            Stop::More | Stop::Hidden => Some(Offence::Impersonation),
        };
        offence.map_or(Verdict::Send, Verdict::Drop)
    }

    /// Has a request answered. While the guest has not received an earlier answer there is none; its
    /// client will ask again.
    fn ask(&mut self, protocol: Protocol, rx: &mut Rx, counters: &PairCounters) -> Answer {
        if self.chain.readable_len() as usize > HEADER_SIZE + MAX_LOOK {
            return Answer::Pass;
        }
        self.outgoing.load_more(&self.chain);
        let Some(buffer) = rx.answer_buffer() else {
            counters.tx_drops.add(1);
            return Answer::Silence;
        };
        let answer = self.answers.answer(protocol, self.outgoing.frame(), buffer);
        if let Answer::Frame(len) = answer {
            rx.queue_answer(len);
            counters.answers(protocol).add(1);
        }
        answer
    }
}
