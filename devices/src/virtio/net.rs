//! virtio-net (virtio 1.2, 5.1) on a TAP device, or on a stream socket as `passt` speaks it.
//!
//! Frames go between guest memory and the TAP in one system call each, with the virtio header that
//! the kernel makes and checks. Received frames are neither copied nor parsed. Of sent frames the
//! headers are: what only servers and routers may say is dropped ([`crate::pod_net`]), and the guest's
//! requests for addresses are answered.
//!
//! ```text
//!  NetSpec --build--> Net --activate--> PairHandler (one thread per queue pair)
//!                      |                  |- Rx: TAP -> Gathered -> receive queue
//!                      |                  |- Tx: transmit queue -> Guard -> TAP, or Answers -> Rx
//!                      |                  `- Control (first pair only)
//!                      `---- Pairs (ports, link state, counters), shared ----'
//! ```

mod announce;
mod capture;
mod control;
mod features;
mod gather;
mod handler;
pub(crate) mod outgoing;
mod pairs;
mod port;
mod rx;
mod spec;
mod state;
mod stats;
mod stream;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod tx;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MQ, VIRTIO_NET_S_LINK_UP};

pub use self::capture::Capture;
use self::features::{guest_offloads, has};
use self::handler::{PairHandler, Setup};
use self::pairs::Pairs;
pub use self::port::Backend;
use self::port::Port;
pub use self::spec::{BackendKind, BuildNetError, MAX_QUEUE_PAIRS, MIN_MTU, NetOptions, NetSpec};
use self::state::NetState;
pub use self::stats::NetStats;
pub use self::stream::Stream;
use crate::pod_net::answers::Answers;
use crate::pod_net::guard::Guard;
use crate::state::{RestoreError, SaveError, Saved};
use crate::virtio::queue::VirtQueue;
use crate::virtio::{
    ActivateError, Activation, CommandEffect, CommandError, DeviceInfo, QueueHandler, VirtioDevice,
    read_space, stats_value,
};

/// What a NIC is.
pub const INFO: DeviceInfo = DeviceInfo {
    virtio_type: 1,
    pci_class: 0x02_00_00,
    thread_prefix: "net",
    seccomp_role: "net",
};

/// What one is whose packets are written down.
const CAPTURED: DeviceInfo = DeviceInfo {
    seccomp_role: "captured_net",
    ..INFO
};

/// What a NIC can be told while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "command", deny_unknown_fields)]
pub enum NetCommand {
    /// Sets the link state that the guest sees; without a link nothing is sent or received.
    SetLink {
        /// Whether there is a link.
        up: bool,
    },
}

/// A virtio network card.
pub struct Net {
    name: String,
    mac: [u8; 6],
    mtu: u16,
    queue_pairs: u16,
    features: u64,
    queue_sizes: Vec<u16>,
    answers: Arc<Answers>,
    guard: Guard,
    capture: Option<Arc<Capture>>,
    pairs: Arc<Pairs>,
}

/// The driver set `DRIVER_OK` without enabling the first queue pair.
#[derive(Debug, Error)]
#[error("The driver did not enable queues 0 and 1")]
struct MissingQueues;

impl Net {
    /// Sets the link state; true if it changed.
    pub fn set_link(&mut self, up: bool) -> bool {
        self.pairs.set_link_up(up)
    }

    /// `virtio_net_config` (5.1.4) as far as the features need it.
    fn config(&self) -> [u8; 12] {
        let status = if self.pairs.link_up() {
            VIRTIO_NET_S_LINK_UP as u16
        } else {
            0
        };
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&self.queue_pairs.to_le_bytes());
        config[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        config
    }
}

impl VirtioDevice for Net {
    fn info(&self) -> &'static DeviceInfo {
        match self.capture {
            None => &INFO,
            Some(_) => &CAPTURED,
        }
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config(), offset, data);
    }

    fn activate(
        &mut self,
        activation: Activation,
    ) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        let Activation {
            features,
            queues,
            resumed,
            config_irq,
        } = activation;
        let multi_queue = has(features, VIRTIO_NET_F_MQ);
        let usable = if multi_queue { self.queue_pairs } else { 1 };
        let mut queues: BTreeMap<u16, VirtQueue> = queues
            .into_iter()
            .map(|queue| (queue.index(), queue))
            .collect();
        // The control queue comes after the last pair that may be used (5.1.2).
        let mut control = queues.remove(&(2 * usable));
        let parts: Vec<_> = (0..usable)
            .map_while(|pair| Some((queues.remove(&(2 * pair))?, queues.remove(&(2 * pair + 1))?)))
            .collect();
        if parts.is_empty() {
            let source = Box::new(MissingQueues);
            return Err(ActivateError {
                name: self.name.clone(),
                source,
            });
        }
        let available = parts.len() as u16;
        let offloads = guest_offloads(features);
        match resumed {
            true => {
                let active = self.pairs.active().min(available);
                self.pairs.prepare(active, self.pairs.offloads() & offloads);
            }
            false => self.pairs.prepare(1, offloads),
        }
        let setup = Setup {
            pairs: Arc::clone(&self.pairs),
            features,
            mtu: self.mtu,
            answers: Arc::clone(&self.answers),
            guard: self.guard,
            capture: self.capture.clone(),
            available,
            resumed,
            config_irq,
        };
        let handlers = (0..).zip(parts).map(|(pair, (rx, tx))| {
            let stream = match &self.pairs.get(pair).port {
                Port::Tap(_) => None,
                // There unless an earlier handler lives, which transports do not let happen; such a
                // NIC would be without traffic.
                Port::Stream(stream) => stream.take(),
            };
            let handler = PairHandler::new(&setup, pair, rx, tx, control.take(), stream);
            Box::new(handler) as Box<dyn QueueHandler>
        });
        Ok(handlers.collect())
    }

    fn save(&self) -> Result<Saved, SaveError> {
        Saved::new(&self.pairs.save())
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let state: NetState = saved.state()?;
        let active = state.active_pairs;
        if !(1..=self.queue_pairs).contains(&active) {
            let what = format!("{active} active queue pairs of {}", self.queue_pairs);
            return Err(RestoreError::unfit::<NetState>(what));
        }
        self.pairs.restore(&state);
        Ok(())
    }

    fn stats(&self) -> Value {
        stats_value(&self.pairs.stats())
    }

    fn command(&mut self, command: Value) -> Result<CommandEffect, CommandError> {
        let NetCommand::SetLink { up } = serde_json::from_value(command)?;
        let config_changed = self.set_link(up);
        Ok(CommandEffect { config_changed })
    }
}
