//! The receive path of one queue pair: TAP to guest.

use std::fs::File;
use std::io::{self, ErrorKind, Read};

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::features::{MAX_PACKET, has, largest_packet};
use super::gather::{Gathered, Room};
use super::stats::PairCounters;
use super::tap::HEADER_SIZE;
use crate::virtio::QueueError;
use crate::virtio::queue::VirtQueue;

/// Interrupt the guest at least this often, packets; it can work while we read more.
const NOTIFY_EVERY: usize = 64;

/// More packets than a TAP queue holds (`txqueuelen`, 1000 by default).
const MAX_STALE: usize = 4096;

/// Why receiving ended for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RxEnd {
    /// The TAP is empty; its next packet wakes us.
    Empty,
    /// The guest has no buffers; its next kick wakes us.
    Starved,
    /// The budget is used up; somebody must wake us.
    Budget,
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
}

enum Placed {
    Delivered,
    Dropped,
    NoRoom,
}

/// Receive state of one queue pair.
pub(super) struct Rx {
    gathered: Gathered,
    largest: usize,
    /// An answer made here.
    answer: Waiting,
    /// A packet read while the guest's buffers were not sure to hold it.
    parked: Waiting,
}

impl Rx {
    pub(super) fn new(queue: &VirtQueue, features: u64, mtu: u16, max_answer: usize) -> Self {
        Self {
            gathered: Gathered::new(queue, has(features, VIRTIO_NET_F_MRG_RXBUF)),
            largest: largest_packet(features, mtu),
            answer: Waiting::new(HEADER_SIZE + max_answer),
            parked: Waiting::new(MAX_PACKET + 1),
        }
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
    pub(super) fn queue_answer(&mut self, len: usize) {
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
        tap: &File,
        link_up: bool,
        counters: &PairCounters,
        budget: usize,
    ) -> Result<RxEnd, QueueError> {
        queue.disable_kicks();
        let mut end = RxEnd::Budget;
        for count in 1..=budget {
            if let Some(reason) = self.step(queue, tap, link_up, counters)? {
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
        tap: &File,
        link_up: bool,
        counters: &PairCounters,
    ) -> Result<Option<RxEnd>, QueueError> {
        if !link_up {
            return Ok(self.drop_one(tap, counters));
        }
        if self.answer.len > 0 || self.parked.len > 0 {
            return self.place_waiting(queue, counters);
        }
        let (room, useless) = self.gathered.gather(queue, self.largest)?;
        counters.rx_errors.add(useless as u64);
        let result = match room {
            Room::Enough => self.read_into_guest(queue, tap, counters),
            // Not even one chain: leave the packet in the TAP, where the kernel can drop it.
            Room::Short if self.gathered.is_empty() => return Ok(Some(RxEnd::Starved)),
            Room::Short | Room::Never => self.park(tap),
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

    fn drop_one(&mut self, tap: &File, counters: &PairCounters) -> Option<RxEnd> {
        for waiting in [&mut self.answer, &mut self.parked] {
            if waiting.len > 0 {
                counters.rx_drops.add(1);
                waiting.len = 0;
            }
        }
        let mut tap = tap;
        if tap.read(&mut self.parked.packet).is_err() {
            return Some(RxEnd::Empty);
        }
        counters.rx_drops.add(1);
        None
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
        let waiting = if answer.len > 0 { answer } else { parked };
        match place(gathered, queue, &waiting.packet[..waiting.len], counters)? {
            Placed::Delivered => count_packet(counters, waiting.len),
            Placed::Dropped => counters.rx_drops.add(1),
            Placed::NoRoom => return Ok(Some(RxEnd::Starved)),
        }
        waiting.len = 0;
        Ok(None)
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
    packet: &[u8],
    counters: &PairCounters,
) -> Result<Placed, QueueError> {
    let (room, useless) = gathered.gather(queue, packet.len())?;
    counters.rx_errors.add(useless as u64);
    Ok(match room {
        Room::Enough => {
            gathered.write(packet);
            gathered.complete(queue, packet.len());
            Placed::Delivered
        }
        Room::Short => Placed::NoRoom,
        Room::Never => Placed::Dropped,
    })
}
