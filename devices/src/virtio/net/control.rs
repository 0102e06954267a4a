//! The control queue (5.1.6.5): multi-queue and guest offloads; filters are accepted and not needed,
//! since the guest receives everything anyway.

use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
    VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_ERR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};

use super::features::{guest_offloads, has, tap_offloads};
use super::pairs::Pairs;
use crate::virtio::QueueError;
use crate::virtio::chain::Chain;
use crate::virtio::queue::VirtQueue;

/// Commands served per turn.
const BUDGET: usize = 64;

/// State of the control queue.
pub(super) struct Control {
    chain: Chain,
    pairs: Arc<Pairs>,
    features: u64,
    /// Pairs with a handler.
    available: u16,
}

impl Control {
    pub(super) fn new(queue: &VirtQueue, pairs: Arc<Pairs>, features: u64, available: u16) -> Self {
        Self {
            chain: queue.new_chain(),
            pairs,
            features,
            available,
        }
    }

    /// Serves commands; true if some may be left.
    pub(super) fn run(&mut self, queue: &mut VirtQueue) -> Result<bool, QueueError> {
        for _ in 0..BUDGET {
            if queue.next(&mut self.chain)? {
                let ack = if self.execute().is_some() {
                    VIRTIO_NET_OK
                } else {
                    VIRTIO_NET_ERR
                };
                let written = self.chain.write_at(0, &[ack as u8]);
                queue.complete(self.chain.head(), written as u32);
                continue;
            }
            queue.notify();
            if !queue.enable_kicks() {
                return Ok(false);
            }
        }
        queue.notify();
        Ok(true)
    }

    /// Carries out the command in the chain; `None` if it is refused. The driver reads the answer
    /// there, so nothing is worth a log line.
    fn execute(&self) -> Option<()> {
        let [class, command] = self.chain.read_obj::<[u8; 2]>(0)?.map(u32::from);
        match (class, command) {
            (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC | VIRTIO_NET_CTRL_RX_ALLMULTI)
            | (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                self.negotiated(VIRTIO_NET_F_CTRL_RX)
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => self.set_pairs(),
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                self.set_guest_offloads()
            }
            _ => None,
        }
    }

    fn set_pairs(&self) -> Option<()> {
        self.negotiated(VIRTIO_NET_F_MQ)?;
        let count = u16::from_le_bytes(self.chain.read_obj(2)?);
        if !(1..=self.available).contains(&count) {
            return None;
        }
        self.pairs.set_active(count).ok()
    }

    fn set_guest_offloads(&self) -> Option<()> {
        self.negotiated(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
        let wanted = u64::from_le_bytes(self.chain.read_obj(2)?);
        if wanted & !guest_offloads(self.features) != 0 {
            return None;
        }
        let port = &self.pairs.get(0).port;
        port.set_offloads(tap_offloads(wanted)).ok()?;
        self.pairs.set_offloads(wanted);
        Some(())
    }

    fn negotiated(&self, feature: u32) -> Option<()> {
        has(self.features, feature).then_some(())
    }
}
