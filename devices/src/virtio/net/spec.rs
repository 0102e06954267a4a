//! What a NIC is made from, and the checks before it is made.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::capture::Capture;
use super::features::Abilities;
use super::pairs::{Pair, Pairs};
use super::port::{self, Backend, Port};
use super::stats::PairCounters;
use super::stream::Stream;
use super::{Net, announce, features};
use crate::pod_net::LeaseError;
use crate::pod_net::answers::Answers;
use crate::pod_net::dhcp::{DhcpLease, DhcpResponder};
use crate::pod_net::guard::Guard;
use crate::pod_net::ipv6::{Ipv6Lease, Ipv6Responder};
use crate::tap::{self, Offloads};
use crate::virtio::VirtioDevice;
use crate::virtio::spec::{BuildDeviceError, DeviceOptions, DeviceSpec, exactly};
use crate::wake::Wake;

/// Entries of every queue.
const QUEUE_SIZE: u16 = 256;

/// The machine's limit on queue pairs; the plan's too.
pub const MAX_QUEUE_PAIRS: u16 = 64;

/// Smallest MTU that IPv4 allows (RFC 791), bytes; also the smallest that virtio allows (5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// What a NIC is made from beside its backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetOptions {
    /// MAC address of the guest.
    pub mac: [u8; 6],
    /// MTU offered to the guest, bytes.
    pub mtu: u16,
    /// Queue pairs, 1 to [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u16,
    /// What its descriptors are.
    pub backend: BackendKind,
    /// Link state at start.
    pub link_up: bool,
    /// What the guest's DHCP client is told; `None` leaves DHCP to the network.
    pub lease: Option<DhcpLease>,
    /// What the guest is told by DHCPv6 and router advertisements; `None` leaves both to the network.
    pub lease6: Option<Ipv6Lease>,
    /// Drop what the guest sends under another MAC address than `mac`.
    pub spoof_check: bool,
    /// Write its packets down: the first two of its descriptors are the files for that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub captured: bool,
}

/// Kinds of [`Backend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BackendKind {
    /// TAP queues.
    Taps,
    /// A connected, non-blocking stream socket.
    Stream,
}

impl DeviceOptions for NetOptions {
    fn queues(&self) -> u32 {
        2 * u32::from(self.queue_pairs) + 1
    }

    /// One a queue pair.
    fn workers(&self) -> u32 {
        self.queue_pairs.into()
    }

    /// The network is that of now, the link may have been set, and packets are written down as is asked for now.
    fn matched_to(self, saved: &Self, is_clone: bool) -> Self {
        Self {
            mac: if is_clone { saved.mac } else { self.mac },
            link_up: saved.link_up,
            lease: saved.lease.clone(),
            lease6: saved.lease6.clone(),
            captured: saved.captured,
            ..self
        }
    }

    /// Takes the two files of a capture if there is one, then a TAP queue for each queue pair in order, or one stream.
    fn spec(
        self,
        name: String,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Box<dyn DeviceSpec>, BuildDeviceError> {
        let capture = match self.captured {
            true => Some(Capture::take(
                &name,
                &mut descriptors,
                self.queue_pairs.into(),
            )?),
            false => None,
        };
        let backend = match self.backend {
            BackendKind::Taps => {
                let (found, wanted) = (descriptors.len(), usize::from(self.queue_pairs));
                if found != wanted {
                    return Err(BuildDeviceError::Descriptors {
                        name,
                        found,
                        wanted,
                    });
                }
                Backend::Taps(descriptors.into_iter().map(File::from).collect())
            }
            BackendKind::Stream => {
                let [stream] = exactly(&name, descriptors)?;
                Backend::Stream(Arc::new(Stream::new(stream.into())))
            }
        };
        Ok(Box::new(NetSpec {
            name,
            backend,
            options: self,
            capture: capture.map(Arc::new),
        }))
    }
}

/// What a NIC is made from.
#[derive(Debug)]
pub struct NetSpec {
    /// Name of the interface in the VMI.
    pub name: String,
    /// What it is connected to.
    pub backend: Backend,
    /// The rest.
    pub options: NetOptions,
    /// Where its packets are written down, over all resets.
    pub capture: Option<Arc<Capture>>,
}

impl DeviceSpec for NetSpec {
    fn make(&self) -> Result<Box<dyn VirtioDevice>, BuildDeviceError> {
        let spec = Self {
            name: self.name.clone(),
            backend: self.backend.try_clone().map_err(BuildDeviceError::failed)?,
            options: self.options.clone(),
            capture: self.capture.clone(),
        };
        Ok(Box::new(spec.build().map_err(BuildDeviceError::failed)?))
    }

    fn announce(&self) -> io::Result<()> {
        match &self.backend {
            Backend::Taps(taps) => {
                let mut taps = taps.iter();
                taps.next()
                    .map_or(Ok(()), |tap| announce::send(tap, self.options.mac))
            }
            // What is behind a stream has one guest only.
            Backend::Stream(_) => Ok(()),
        }
    }
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
    /// Not one TAP queue, or stream, per pair.
    #[error("NIC {name} has {taps} TAP queues or streams for {pairs} queue pairs")]
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
    /// A file that is no socket.
    #[error("NIC {name}: the stream is no socket")]
    NotStream {
        /// The NIC.
        name: String,
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
    /// A lease cannot be given by DHCP.
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
            backend,
            options,
            capture,
        } = self;
        let NetOptions {
            mac,
            mtu,
            queue_pairs,
            link_up,
            lease,
            lease6,
            spoof_check,
            ..
        } = options;
        let refused = |source| BuildNetError::Lease {
            name: name.clone(),
            source,
        };
        let dhcp = lease.map(|lease| DhcpResponder::new(&lease, mac));
        let dhcp = dhcp.transpose().map_err(refused)?;
        let ipv6 = lease6.map(|lease| Ipv6Responder::new(&lease));
        let ipv6 = ipv6.transpose().map_err(refused)?;
        let failed = |source| BuildNetError::Setup {
            name: name.clone(),
            source,
        };
        let abilities = abilities(&backend).map_err(failed)?;
        let pairs = backend
            .into_ports()
            .into_iter()
            .map(new_pair)
            .collect::<io::Result<_>>()
            .map_err(failed)?;
        let answers = Answers::new(dhcp, ipv6).map_err(failed)?;
        let queues = 2 * usize::from(queue_pairs) + 1;
        Ok(Net {
            name,
            mac,
            mtu,
            queue_pairs,
            features: features::offered(abilities),
            queue_sizes: vec![QUEUE_SIZE; queues],
            answers: Arc::new(answers),
            guard: Guard::new(spoof_check.then_some(mac)),
            capture,
            pairs: Arc::new(Pairs::new(pairs, link_up)),
        })
    }

    fn check(&self) -> Result<(), BuildNetError> {
        let backend = &self.backend;
        let NetOptions {
            mtu,
            queue_pairs: pairs,
            ..
        } = &self.options;
        let name = self.name.clone();
        if !(1..=MAX_QUEUE_PAIRS).contains(pairs) {
            return Err(BuildNetError::Pairs {
                name,
                pairs: *pairs,
            });
        }
        if backend.queues() != usize::from(*pairs) {
            return Err(BuildNetError::Taps {
                name,
                taps: backend.queues(),
                pairs: *pairs,
            });
        }
        match backend {
            Backend::Taps(taps) => {
                if let Some(index) = taps.iter().position(|file| !tap::is_tap(file)) {
                    return Err(BuildNetError::NotTap { name, index });
                }
            }
            Backend::Stream(stream) if !port::is_socket(stream.socket()) => {
                return Err(BuildNetError::NotStream { name });
            }
            Backend::Stream(_) => {}
        }
        if *mtu < MIN_MTU {
            return Err(BuildNetError::Mtu { name, mtu: *mtu });
        }
        Ok(())
    }
}

fn abilities(backend: &Backend) -> io::Result<Abilities> {
    let Backend::Taps(taps) = backend else {
        return Ok(Abilities::default());
    };
    Ok(Abilities {
        offloads: true,
        uso: taps.first().map_or(Ok(false), probe_uso)?,
        multi_queue: taps.len() > 1,
    })
}

/// Whether the kernel can leave UDP unsegmented. Leaves the TAP without offloads.
fn probe_uso(tap: &File) -> io::Result<bool> {
    let uso = Offloads::CSUM.with(Offloads::USO4).with(Offloads::USO6);
    let able = tap::set_offloads(tap, uso).is_ok();
    tap::set_offloads(tap, Offloads::default())?;
    Ok(able)
}

fn new_pair(port: Port) -> io::Result<Pair> {
    let wake = Wake::new()?;
    Ok(Pair {
        port,
        wake,
        counters: PairCounters::default(),
    })
}
