//! virtio-net (virtio 1.2, 5.1) on a TAP device.
//!
//! Frames go between guest memory and the TAP in one system call each, with the virtio header that
//! the kernel makes and checks, so the VMM copies and parses nothing. One exception: DHCP requests
//! of the guest are answered here (see [`dhcp`]).
//!
//! ```text
//!  NetSpec --build--> Net --activate--> PairHandler (one thread per queue pair)
//!                      |                  |- Rx: TAP -> Gathered -> receive queue
//!                      |                  |- Tx: transmit queue -> TAP, or DhcpResponder -> Rx
//!                      |                  `- Control (first pair only)
//!                      `---- Pairs (TAP queues, link state, counters), shared ----'
//! ```

mod control;
pub mod dhcp;
mod features;
mod gather;
mod handler;
mod pairs;
mod rx;
mod stats;
pub mod tap;
#[cfg(test)]
mod tests;
mod tx;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use thiserror::Error;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MQ, VIRTIO_NET_S_LINK_UP};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::dhcp::{DhcpLease, DhcpResponder, LeaseError};
use self::features::has;
use self::handler::{PairHandler, Setup};
use self::pairs::{Pair, Pairs};
pub use self::stats::NetStats;
use self::stats::PairCounters;
use self::tap::Offloads;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{
    ActivateError, Activation, DeviceStats, DeviceType, QueueHandler, VirtioDevice,
};

/// Entries of every queue.
const QUEUE_SIZE: u16 = 256;

/// The machine's limit on queue pairs; the plan's too.
pub const MAX_QUEUE_PAIRS: u16 = 64;

/// Smallest MTU that IPv4 allows (RFC 791), bytes; also the smallest that virtio allows (5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// What a NIC is made from.
#[derive(Debug)]
pub struct NetSpec {
    /// Name of the interface in the VMI.
    pub name: String,
    /// MAC address of the guest.
    pub mac: [u8; 6],
    /// MTU offered to the guest, bytes.
    pub mtu: u16,
    /// Queue pairs, 1 to [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u16,
    /// One TAP queue per pair, as [`tap::open`] makes them.
    pub taps: Vec<File>,
    /// Link state at start.
    pub link_up: bool,
    /// What the guest's DHCP client is told; `None` leaves DHCP to the network.
    pub lease: Option<DhcpLease>,
}

/// A NIC cannot be made.
#[derive(Debug, Error)]
pub enum BuildNetError {
    /// Too few or too many queue pairs.
    #[error("NIC {name} has {pairs} queue pairs, not 1 to {MAX_QUEUE_PAIRS}")]
    Pairs {
        /// The NIC.
        name: String,
        /// Pairs asked for.
        pairs: u16,
    },
    /// Not one TAP queue per pair.
    #[error("NIC {name} has {taps} TAP queues for {pairs} queue pairs")]
    Taps {
        /// The NIC.
        name: String,
        /// Files given.
        taps: usize,
        /// Pairs asked for.
        pairs: u16,
    },
    /// A file that is not a TAP queue, or one without header.
    #[error("NIC {name}: descriptor {index} is not a TAP queue with virtio headers")]
    NotTap {
        /// The NIC.
        name: String,
        /// Which file.
        index: usize,
    },
    /// An MTU that no guest may use.
    #[error("NIC {name} has MTU {mtu}, below {MIN_MTU}")]
    Mtu {
        /// The NIC.
        name: String,
        /// The MTU.
        mtu: u16,
    },
    /// The kernel refused.
    #[error("Cannot set up the queues of NIC {name}")]
    Setup {
        /// The NIC.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The lease cannot be given by DHCP.
    #[error("NIC {name} cannot answer DHCP")]
    Lease {
        /// The NIC.
        name: String,
        /// The cause.
        #[source]
        source: LeaseError,
    },
}

impl NetSpec {
    /// Makes the NIC.
    pub fn build(self) -> Result<Net, BuildNetError> {
        self.check()?;
        let Self {
            name,
            mac,
            mtu,
            queue_pairs,
            taps,
            link_up,
            lease,
        } = self;
        let dhcp = lease
            .map(|lease| DhcpResponder::new(&lease, mac))
            .transpose()
            .map_err(|source| BuildNetError::Lease {
                name: name.clone(),
                source,
            })?;
        let failed = |source| BuildNetError::Setup {
            name: name.clone(),
            source,
        };
        let uso = probe_uso(&taps[0]).map_err(failed)?;
        let pairs = taps
            .into_iter()
            .map(new_pair)
            .collect::<io::Result<_>>()
            .map_err(failed)?;
        let queues = 2 * usize::from(queue_pairs) + 1;
        Ok(Net {
            name,
            mac,
            mtu,
            queue_pairs,
            features: features::offered(uso, queue_pairs > 1),
            queue_sizes: vec![QUEUE_SIZE; queues],
            dhcp: dhcp.map(Arc::new),
            pairs: Arc::new(Pairs::new(pairs, link_up)),
        })
    }

    fn check(&self) -> Result<(), BuildNetError> {
        let Self {
            mtu,
            queue_pairs: pairs,
            taps,
            ..
        } = self;
        let name = self.name.clone();
        if !(1..=MAX_QUEUE_PAIRS).contains(pairs) {
            return Err(BuildNetError::Pairs {
                name,
                pairs: *pairs,
            });
        }
        if taps.len() != usize::from(*pairs) {
            return Err(BuildNetError::Taps {
                name,
                taps: taps.len(),
                pairs: *pairs,
            });
        }
        if let Some(index) = taps.iter().position(|file| !tap::is_tap(file)) {
            return Err(BuildNetError::NotTap { name, index });
        }
        if *mtu < MIN_MTU {
            return Err(BuildNetError::Mtu { name, mtu: *mtu });
        }
        Ok(())
    }
}

/// Whether the kernel can leave UDP unsegmented. Leaves the TAP without offloads.
fn probe_uso(tap: &File) -> io::Result<bool> {
    let uso = Offloads::CSUM.with(Offloads::USO4).with(Offloads::USO6);
    let able = tap::set_offloads(tap, uso).is_ok();
    tap::set_offloads(tap, Offloads::default())?;
    Ok(able)
}

fn new_pair(tap: File) -> io::Result<Pair> {
    let wake = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
    Ok(Pair {
        tap,
        wake,
        counters: PairCounters::default(),
    })
}

/// A virtio network card.
pub struct Net {
    name: String,
    mac: [u8; 6],
    mtu: u16,
    queue_pairs: u16,
    features: u64,
    queue_sizes: Vec<u16>,
    dhcp: Option<Arc<DhcpResponder>>,
    pairs: Arc<Pairs>,
}

/// The driver set `DRIVER_OK` without enabling the first queue pair.
#[derive(Debug, Error)]
#[error("The driver did not enable queues 0 and 1")]
struct MissingQueues;

impl Net {
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
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
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
        let config = self.config();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..));
        let rest = rest.unwrap_or_default();
        data.fill(0);
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }

    fn activate(
        &mut self,
        activation: Activation,
    ) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        let Activation {
            features, queues, ..
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
        self.pairs.reset();
        let setup = Setup {
            pairs: Arc::clone(&self.pairs),
            features,
            mtu: self.mtu,
            dhcp: self.dhcp.clone(),
            available: parts.len() as u16,
        };
        let handlers = (0..).zip(parts).map(|(pair, (rx, tx))| {
            let handler = PairHandler::new(&setup, pair, rx, tx, control.take());
            Box::new(handler) as Box<dyn QueueHandler>
        });
        Ok(handlers.collect())
    }

    fn stats(&self) -> DeviceStats {
        DeviceStats::Net(self.pairs.stats())
    }

    fn set_link(&mut self, up: bool) -> bool {
        self.pairs.set_link_up(up)
    }
}
