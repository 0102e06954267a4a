//! The transmit path of one queue pair: guest to TAP.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::dhcp::{DhcpResponder, MAX_REQUEST, PEEK};
use super::features::MAX_PACKET;
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
    dhcp: Option<Arc<DhcpResponder>>,
    /// A DHCP request, copied out of guest memory once.
    request: Box<[u8; MAX_REQUEST]>,
}

impl Tx {
    pub(super) fn new(queue: &VirtQueue, dhcp: Option<Arc<DhcpResponder>>) -> Self {
        Self {
            chain: queue.new_chain(),
            dhcp,
            request: Box::new([0; MAX_REQUEST]),
        }
    }

    /// Sends up to `budget` packets; true if some may be left. Answers made here go to `rx`.
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
                if link_up {
                    self.send(tap, rx, counters);
                } else {
                    counters.tx_drops.add(1);
                }
                queue.complete(self.chain.head(), 0);
                count += 1;
                if count == budget {
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

    fn send(&mut self, tap: &File, rx: &mut Rx, counters: &PairCounters) {
        let len = self.chain.readable_len() as usize;
        if !(HEADER_SIZE + MIN_FRAME..=MAX_PACKET).contains(&len) {
            counters.tx_errors.add(1);
            return;
        }
        if self.is_dhcp(len) && self.answer_dhcp(rx, counters) {
            return;
        }
        match write_packet(tap, &self.chain) {
            Ok(()) => {
                counters.tx_packets.add(1);
                counters.tx_bytes.add((len - HEADER_SIZE) as u64);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => counters.tx_drops.add(1),
            Err(_) => counters.tx_errors.add(1),
        }
    }

    fn is_dhcp(&self, len: usize) -> bool {
        let Some(dhcp) = &self.dhcp else { return false };
        let mut head = [0; PEEK];
        let peeked = self.chain.read_at(HEADER_SIZE as u32, &mut head);
        len - HEADER_SIZE <= MAX_REQUEST && dhcp.wants(&head[..peeked])
    }

    /// True if the packet is dealt with: it was answered, or would be but for an earlier answer
    /// that the guest has not received yet; the client will ask again.
    fn answer_dhcp(&mut self, rx: &mut Rx, counters: &PairCounters) -> bool {
        let Some(dhcp) = &self.dhcp else { return false };
        let len = self
            .chain
            .read_at(HEADER_SIZE as u32, &mut self.request[..]);
        let Some(buffer) = rx.answer_buffer() else {
            counters.tx_drops.add(1);
            return true;
        };
        let Some(answer_len) = dhcp.answer(&self.request[..len], buffer) else {
            return false;
        };
        rx.queue_answer(answer_len);
        counters.dhcp_replies.add(1);
        true
    }
}

/// Writes the readable part of `chain`, a header and a frame, which the kernel checks.
fn write_packet(tap: &File, chain: &Chain) -> io::Result<()> {
    let buffers = chain.readable();
    let count = buffers.len() as libc::c_int;
    // SAFETY: the iovecs are ranges of guest memory, which `chain` keeps mapped; the call only reads
    // them, once.
    let written = unsafe { libc::writev(tap.as_raw_fd(), buffers.as_ptr(), count) };
    if written < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
