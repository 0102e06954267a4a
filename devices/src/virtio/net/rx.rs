//! The receive path of one queue pair: TAP or stream to guest.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::sync::Arc;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::capture::{Capture, Cause, Direction, Fate};
use super::features::{MAX_PACKET, has, largest_packet};
use super::gather::{Gathered, Room};
use super::port::Port;
use super::stats::PairCounters;
use super::stream::{Incoming, Lost, Stream};
use crate::pod_net::MAX_ANSWER;
use crate::pod_net::answers::Protocol;
use crate::tap::HEADER_SIZE;
use crate::virtio::QueueError;
use crate::virtio::queue::VirtQueue;

/// Interrupt the guest at least this often, packets; it can work while we read more.
const NOTIFY_EVERY: usize = 64;

/// More packets than a TAP queue holds (`txqueuelen`, 1000 by default).
const MAX_STALE: usize = 4096;

/// The virtio header of a frame with which nothing is left to do.
const NO_OFFLOADS: [u8; HEADER_SIZE] = [0; HEADER_SIZE];

/// Why receiving ended for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RxEnd {
    /// The TAP or stream is empty; its next packet wakes us.
    Empty,
    /// The guest has no buffers; its next kick wakes us.
    Starved,
    /// The budget is used up; somebody must wake us.
    Budget,
    /// The stream's peer is gone.
    Lost,
}

/// A packet of ours, waiting for buffers.
struct Waiting {
    packet: Box<[u8]>,
    len: usize,
}

impl Waiting {
    fn new(capacity: usize) -> Self {
        Self {
            packet: vec![0; capacity].into_boxed_slice(),
            len: 0,
        }
    }

    /// It without its virtio header.
    fn frame(&self) -> &[u8] {
        self.packet.get(HEADER_SIZE..self.len).unwrap_or_default()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Placed {
    Delivered,
    Dropped,
    NoRoom,
}

/// Receive state of one queue pair.
pub(super) struct Rx {
    gathered: Gathered,
    largest: usize,
    /// An answer made here, and to what.
    answer: Waiting,
    answer_to: Protocol,
    /// A packet read while the guest's buffers were not sure to hold it.
    parked: Waiting,
    /// What has come from a stream.
    incoming: Option<Incoming>,
    capture: Option<Arc<Capture>>,
}

impl Rx {
    pub(super) fn new(
        queue: &VirtQueue,
        features: u64,
        mtu: u16,
        incoming: Option<Incoming>,
        capture: Option<Arc<Capture>>,
    ) -> Self {
        Self {
            gathered: Gathered::new(queue, has(features, VIRTIO_NET_F_MRG_RXBUF)),
            largest: largest_packet(features, mtu),
            answer: Waiting::new(HEADER_SIZE + MAX_ANSWER),
            answer_to: Protocol::Dhcpv4,
            parked: Waiting::new(if incoming.is_some() {
                0
            } else {
                MAX_PACKET + 1
            }),
            incoming,
            capture,
        }
    }

    /// Gives up what belongs to the stream.
    pub(super) fn take_incoming(&mut self) -> Option<Incoming> {
        self.incoming.take()
    }

    /// Puts the buffers back that are held ready.
    pub(super) fn release(&mut self, queue: &mut VirtQueue) {
        self.gathered.release(queue);
    }

    /// Whether an answer waits for buffers.
    pub(super) fn has_answer(&self) -> bool {
        self.answer.len > 0
    }

    /// Where to write a frame that the guest shall receive; `None` while another one waits.
    pub(super) fn answer_buffer(&mut self) -> Option<&mut [u8]> {
        (self.answer.len == 0).then(|| &mut self.answer.packet[HEADER_SIZE..])
    }

    /// Says that the answer buffer holds a frame of `len` bytes.
    pub(super) fn queue_answer(&mut self, to: Protocol, len: usize) {
        self.answer_to = to;
        self.answer.packet[..HEADER_SIZE].fill(0);
        self.answer.len = HEADER_SIZE + len;
    }

    /// Throws away what the TAP collected before the driver was ready.
    pub(super) fn discard_stale(&mut self, tap: &File) {
        let mut tap = tap;
        for _ in 0..MAX_STALE {
            if tap.read(&mut self.parked.packet).is_err() {
                return;
            }
        }
    }

    /// Receives up to `budget` packets.
    pub(super) fn run(
        &mut self,
        queue: &mut VirtQueue,
        port: &Port,
        link_up: bool,
        counters: &PairCounters,
        budget: usize,
    ) -> Result<RxEnd, QueueError> {
        queue.disable_kicks();
        let mut end = RxEnd::Budget;
        for count in 1..=budget {
            if let Some(reason) = self.step(queue, port, link_up, counters)? {
                end = reason;
                // Chains that came while kicks were off would stay unnoticed.
                if reason != RxEnd::Starved || !queue.enable_kicks() {
                    break;
                }
                end = RxEnd::Budget;
            }
            if count % NOTIFY_EVERY == 0 {
                queue.notify();
            }
        }
        queue.notify();
        Ok(end)
    }

    /// Moves one packet; `Some` if there is nothing to do.
    fn step(
        &mut self,
        queue: &mut VirtQueue,
        port: &Port,
        link_up: bool,
        counters: &PairCounters,
    ) -> Result<Option<RxEnd>, QueueError> {
        if port.is_lost() {
            return Ok(Some(RxEnd::Empty));
        }
        if !link_up {
            return Ok(self.drop_one(port, counters));
        }
        if self.answer.len > 0 || self.parked.len > 0 {
            return self.place_waiting(queue, counters);
        }
        match port {
            Port::Tap(tap) => self.step_tap(queue, tap, counters),
            Port::Stream(stream) => self.step_stream(queue, stream, counters),
        }
    }

    fn step_tap(
        &mut self,
        queue: &mut VirtQueue,
        tap: &File,
        counters: &PairCounters,
    ) -> Result<Option<RxEnd>, QueueError> {
        let (room, useless) = self.gathered.gather(queue, self.largest)?;
        counters.rx_errors.add(useless as u64);
        let result = match room {
            Room::Enough if self.capture.is_none() => self.read_into_guest(queue, tap, counters),
            // Not even one chain: leave the packet in the TAP, where the kernel can drop it.
            Room::Short if self.gathered.is_empty() => return Ok(Some(RxEnd::Starved)),
            // Or the packet is looked at on its way.
            Room::Enough | Room::Short | Room::Never => self.park(tap),
        };
        match result {
            Ok(()) => Ok(None),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Some(RxEnd::Empty)),
            Err(_) => {
                counters.rx_errors.add(1);
                Ok(Some(RxEnd::Empty))
            }
        }
    }

    /// A frame that finds no room stays in the stream, which makes the peer wait.
    fn step_stream(
        &mut self,
        queue: &mut VirtQueue,
        stream: &Stream,
        counters: &PairCounters,
    ) -> Result<Option<RxEnd>, QueueError> {
        let Some(incoming) = &mut self.incoming else {
            return Ok(Some(RxEnd::Empty));
        };
        let frame = match incoming.next(stream.socket()) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(Some(RxEnd::Empty)),
            Err(Lost) => return Ok(Some(RxEnd::Lost)),
        };
        let placed = place(&mut self.gathered, queue, &NO_OFFLOADS, frame, counters)?;
        if placed == Placed::NoRoom {
            return Ok(Some(RxEnd::Starved));
        }
        settle(
            placed,
            frame,
            Fate::Passed,
            counters,
            self.capture.as_deref(),
        );
        incoming.consume();
        Ok(None)
    }

    /// The usual path: the kernel writes the packet where it belongs.
    fn read_into_guest(
        &mut self,
        queue: &mut VirtQueue,
        tap: &File,
        counters: &PairCounters,
    ) -> io::Result<()> {
        match self.gathered.read(tap)? {
            Some(len) => {
                self.gathered.complete(queue, len);
                count_packet(counters, len);
            }
            None => counters.rx_drops.add(1),
        }
        Ok(())
    }

    /// The guest has fewer buffers than the largest packet needs; most are smaller.
    fn park(&mut self, tap: &File) -> io::Result<()> {
        let mut tap = tap;
        self.parked.len = tap.read(&mut self.parked.packet)?;
        Ok(())
    }

    fn drop_one(&mut self, port: &Port, counters: &PairCounters) -> Option<RxEnd> {
        let capture = self.capture.as_deref();
        let lost = |frame: &[u8]| {
            counters.rx_drops.add(1);
            record(capture, frame, Fate::Lost(Cause::LinkDown));
        };
        for waiting in [&mut self.answer, &mut self.parked] {
            if waiting.len > 0 {
                lost(waiting.frame());
                waiting.len = 0;
            }
        }
        let there = match (port, &mut self.incoming) {
            (Port::Tap(tap), _) => {
                let mut tap = tap;
                let read = tap.read(&mut self.parked.packet);
                if let Ok(len) = read {
                    lost(self.parked.packet.get(HEADER_SIZE..len).unwrap_or_default());
                }
                read.is_ok()
            }
            (Port::Stream(stream), Some(incoming)) => match incoming.next(stream.socket()) {
                Ok(Some(frame)) => {
                    lost(frame);
                    incoming.consume();
                    true
                }
                Ok(None) => false,
                Err(Lost) => return Some(RxEnd::Lost),
            },
            (Port::Stream(_), None) => false,
        };
        (!there).then_some(RxEnd::Empty)
    }

    fn place_waiting(
        &mut self,
        queue: &mut VirtQueue,
        counters: &PairCounters,
    ) -> Result<Option<RxEnd>, QueueError> {
        let Self {
            gathered,
            answer,
            parked,
            ..
        } = self;
        let (waiting, fate) = match answer.len {
            0 => (parked, Fate::Passed),
            _ => (answer, Fate::Made(self.answer_to)),
        };
        // A packet is longer than its header; what is not cannot be placed.
        let Some((header, frame)) = waiting.packet[..waiting.len].split_first_chunk() else {
            waiting.len = 0;
            return Ok(None);
        };
        let placed = place(gathered, queue, header, frame, counters)?;
        if placed == Placed::NoRoom {
            return Ok(Some(RxEnd::Starved));
        }
        settle(placed, frame, fate, counters, self.capture.as_deref());
        waiting.len = 0;
        Ok(None)
    }
}

/// Counts a frame that was given to the guest or does not fit, and writes it down.
fn settle(
    placed: Placed,
    frame: &[u8],
    fate: Fate,
    counters: &PairCounters,
    capture: Option<&Capture>,
) {
    let fate = match placed {
        Placed::Dropped => {
            counters.rx_drops.add(1);
            Fate::Lost(Cause::SmallBuffers)
        }
        Placed::Delivered | Placed::NoRoom => {
            count_packet(counters, HEADER_SIZE + frame.len());
            fate
        }
    };
    record(capture, frame, fate);
}

/// Writes a frame down, if somebody wants to see it.
fn record(capture: Option<&Capture>, frame: &[u8], fate: Fate) {
    if let Some(capture) = capture {
        let copy = |to: &mut [u8]| to.copy_from_slice(frame);
        capture.record(Direction::Received, fate, frame.len(), copy);
    }
}

fn count_packet(counters: &PairCounters, len: usize) {
    counters.rx_packets.add(1);
    counters
        .rx_bytes
        .add(len.saturating_sub(HEADER_SIZE) as u64);
}

fn place(
    gathered: &mut Gathered,
    queue: &mut VirtQueue,
    header: &[u8; HEADER_SIZE],
    frame: &[u8],
    counters: &PairCounters,
) -> Result<Placed, QueueError> {
    let len = HEADER_SIZE + frame.len();
    let (room, useless) = gathered.gather(queue, len)?;
    counters.rx_errors.add(useless as u64);
    Ok(match room {
        Room::Enough => {
            gathered.write(header, frame);
            gathered.complete(queue, len);
            Placed::Delivered
        }
        Room::Short => Placed::NoRoom,
        Room::Never => Placed::Dropped,
    })
}
