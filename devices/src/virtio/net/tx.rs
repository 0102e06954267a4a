//! The transmit path of one queue pair: guest to TAP or stream.

use std::fs::File;
use std::io::ErrorKind;
use std::sync::Arc;

use super::capture::{Capture, Cause, Direction, Fate};
use super::features::MAX_PACKET;
use super::outgoing::{MAX_LOOK, Outgoing};
use super::port::Port;
use super::rx::Rx;
use super::stats::PairCounters;
use super::stream::{self, Lost, PREFIX, Stream, Unsent};
use crate::pod_net::Answer;
use crate::pod_net::answers::{Answers, Protocol};
use crate::pod_net::frame::{self, Bytes, Stop};
use crate::pod_net::guard::{Guard, Offence};
use crate::tap::HEADER_SIZE;
use crate::virtio::QueueError;
use crate::virtio::chain::Chain;
use crate::virtio::queue::VirtQueue;

/// Give buffers back with an interrupt at least this often, packets.
const NOTIFY_EVERY: usize = 64;

/// Show the guest what is done at least this often, packets. Each time costs both processors a
/// cache line that the other holds.
const PUBLISH_EVERY: usize = 16;

/// Shortest Ethernet frame that the TAP takes, bytes.
const MIN_FRAME: usize = 14;

/// Transmit state of one queue pair.
pub(super) struct Tx {
    chain: Chain,
    outgoing: Outgoing,
    guard: Guard,
    answers: Arc<Answers>,
    /// What a stream did not take yet.
    unsent: Option<Unsent>,
    capture: Option<Arc<Capture>>,
}

/// Why sending ended for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TxEnd {
    /// The queue is empty; the guest's next kick wakes us.
    Empty,
    /// The budget is used up, or an answer is to be received first; somebody must wake us.
    Budget,
    /// The stream takes no more; it wakes us when it does.
    Blocked,
    /// The stream's peer is gone.
    Lost,
}

/// What became of a packet.
enum Sent {
    /// It is dealt with.
    Done,
    /// It was answered, and the guest is to receive the answer first.
    Answered,
    /// It is kept, since the stream takes no more.
    Blocked,
    /// The stream's peer is gone, and so is the packet.
    Lost,
}

/// What is to become of a packet.
enum Verdict {
    Send,
    Drop(Offence),
    Ask(Protocol),
}

impl Tx {
    pub(super) fn new(
        queue: &VirtQueue,
        guard: Guard,
        answers: Arc<Answers>,
        unsent: Option<Unsent>,
        capture: Option<Arc<Capture>>,
    ) -> Self {
        Self {
            chain: queue.new_chain(),
            outgoing: Outgoing::new(usize::from(queue.size())),
            guard,
            answers,
            unsent,
            capture,
        }
    }

    /// Gives up what belongs to the stream.
    pub(super) fn take_unsent(&mut self) -> Option<Unsent> {
        self.unsent.take()
    }

    /// Sends up to `budget` packets, up to the first that is answered. Answers made here go to `rx`.
    pub(super) fn run(
        &mut self,
        queue: &mut VirtQueue,
        port: &Port,
        rx: &mut Rx,
        link_up: bool,
        counters: &PairCounters,
        budget: usize,
    ) -> Result<TxEnd, QueueError> {
        match self.flush(port) {
            Ok(true) => {}
            Ok(false) => return Ok(TxEnd::Blocked),
            Err(Lost) => return Ok(TxEnd::Lost),
        }
        let mut count = 0;
        loop {
            queue.disable_kicks();
            while queue.next(&mut self.chain)? {
                let sent = if link_up {
                    self.send(port, rx, counters)
                } else {
                    self.lose(counters)
                };
                queue.push_used(self.chain.head(), 0);
                count += 1;
                let end = match sent {
                    Sent::Done if count < budget => None,
                    Sent::Done | Sent::Answered => Some(TxEnd::Budget),
                    Sent::Blocked => Some(TxEnd::Blocked),
                    Sent::Lost => Some(TxEnd::Lost),
                };
                if let Some(end) = end {
                    queue.notify();
                    return Ok(end);
                }
                if count % NOTIFY_EVERY == 0 {
                    queue.notify();
                } else if count % PUBLISH_EVERY == 0 {
                    queue.publish();
                }
            }
            queue.notify();
            if !queue.enable_kicks() {
                return Ok(TxEnd::Empty);
            }
        }
    }

    /// Sends what the stream did not take before; true if nothing is left.
    fn flush(&mut self, port: &Port) -> Result<bool, Lost> {
        match &mut self.unsent {
            Some(unsent) if !unsent.is_empty() && !port.is_lost() => unsent.flush(port.file()),
            _ => Ok(true),
        }
    }

    /// Deals with the packet in `chain`.
    fn send(&mut self, port: &Port, rx: &mut Rx, counters: &PairCounters) -> Sent {
        let len = self.chain.readable_len() as usize;
        if !(HEADER_SIZE + MIN_FRAME..=MAX_PACKET).contains(&len) {
            counters.tx_errors.add(1);
            return Sent::Done;
        }
        self.outgoing.load(&self.chain);
        match self.judge(len - HEADER_SIZE) {
            Verdict::Send => {}
            Verdict::Drop(offence) => {
                counters.drops_for(offence).add(1);
                self.record(len - HEADER_SIZE, Fate::Kept(offence));
                return Sent::Done;
            }
            Verdict::Ask(protocol) => match self.ask(protocol, rx, counters) {
                Answer::Pass => {}
                Answer::Silence => {
                    self.record(len - HEADER_SIZE, Fate::Ignored(protocol));
                    return Sent::Done;
                }
                Answer::Frame(_) => {
                    self.record(len - HEADER_SIZE, Fate::Answered(protocol));
                    return Sent::Answered;
                }
            },
        }
        match port {
            Port::Tap(tap) => self.send_to_tap(tap, len - HEADER_SIZE, counters),
            Port::Stream(stream) => self.send_to_stream(stream, len - HEADER_SIZE, counters),
        }
    }

    /// There is no link for the packet in `chain`.
    fn lose(&mut self, counters: &PairCounters) -> Sent {
        counters.tx_drops.add(1);
        let len = self.chain.readable_len() as usize;
        if self.capture.is_some() && (HEADER_SIZE..=MAX_PACKET).contains(&len) {
            self.outgoing.load(&self.chain);
            self.record(len - HEADER_SIZE, Fate::Lost(Cause::LinkDown));
        }
        Sent::Done
    }

    /// Writes down the frame of `len` bytes that is loaded, if somebody wants to see it.
    fn record(&self, len: usize, fate: Fate) {
        if let Some(capture) = &self.capture {
            let copy = |to: &mut [u8]| self.outgoing.copy_frame(&self.chain, to);
            capture.record(Direction::Sent, fate, len, copy);
        }
    }

    fn send_to_tap(&mut self, tap: &File, len: usize, counters: &PairCounters) -> Sent {
        let fate = match self.outgoing.write_to_tap(tap, &self.chain) {
            Ok(()) => {
                count_packet(counters, len);
                Fate::Passed
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                counters.tx_drops.add(1);
                Fate::Lost(Cause::BusyBackend)
            }
            Err(_) => {
                counters.tx_errors.add(1);
                Fate::Lost(Cause::RefusedByBackend)
            }
        };
        self.record(len, fate);
        Sent::Done
    }

    fn send_to_stream(&mut self, stream: &Stream, len: usize, counters: &PairCounters) -> Sent {
        let Self {
            chain,
            outgoing,
            unsent: Some(unsent),
            ..
        } = self
        else {
            return Sent::Lost;
        };
        let written = match outgoing.write_to_stream(stream.socket(), chain, len) {
            Ok(written) => written,
            Err(error) if stream::blocked(&error).is_ok() => 0,
            Err(_) => {
                counters.tx_errors.add(1);
                self.record(len, Fate::Lost(Cause::RefusedByBackend));
                return Sent::Lost;
            }
        };
        count_packet(counters, len);
        let is_whole = written == PREFIX + len;
        if !is_whole {
            unsent.keep(|rest| outgoing.copy_rest(chain, written, rest));
        }
        self.record(len, Fate::Passed);
        match is_whole {
            true => Sent::Done,
            false => Sent::Blocked,
        }
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
            rx.queue_answer(protocol, len);
            counters.answers(protocol).add(1);
        }
        answer
    }
}

fn count_packet(counters: &PairCounters, len: usize) {
    counters.tx_packets.add(1);
    counters.tx_bytes.add(len as u64);
}
