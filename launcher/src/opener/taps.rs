//! TAP devices for NICs that come while the machine runs.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use devices::tap::{self, InterfaceFacts, OpenTapError};
use devices::virtio::net::MAX_QUEUE_PAIRS;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use thiserror::Error;

use super::protocol::{NicToOpen, OpenedNic, TapToOpen};
use super::records::Records;
use super::{OpenerError, TAP_DIRECTORY};
use crate::network::{self, HandedOn};

/// Most routes of an interface: DHCP has no room for more.
const MAX_ROUTES: usize = 64;

/// A TAP cannot be had.
#[derive(Debug, Error)]
pub enum TapError {
    /// More queues than a NIC has, or none.
    #[error("A TAP of {0} queues cannot be: 1 to {MAX_QUEUE_PAIRS}")]
    Queues(u16),
    /// It cannot be opened or made.
    #[error(transparent)]
    Open(#[from] OpenTapError),
    /// There is no such interface.
    #[error("The pod has none of the interfaces {0:?}")]
    NoInterface(Vec<String>),
    /// It says nothing of itself.
    #[error("Cannot look at interface {name:?}")]
    Look {
        /// The interface.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// KubeVirt's record of it is none.
    #[error("Cannot read KubeVirt's record of interface {name:?}")]
    Record {
        /// The interface.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is none for a guest.
    #[error("Interface {name:?} cannot be a guest's: {reason}")]
    Unusable {
        /// The interface.
        name: String,
        /// What it lacks.
        reason: String,
    },
    /// It is there, and carries nothing.
    #[error("Cannot bring TAP {name:?} up")]
    Up {
        /// The TAP.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is there, and leads nowhere.
    #[error("Cannot make TAP {name:?} a port of bridge {bridge:?}")]
    Bridge {
        /// The TAP.
        name: String,
        /// The bridge.
        bridge: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What TAPs are made of when nothing can be opened elsewhere any more.
#[derive(Debug)]
pub struct Taps {
    /// By which interfaces are asked for things.
    socket: OwnedFd,
    /// What else is known of them.
    records: Records,
}

impl Taps {
    /// In the network namespace of now. The device by which TAPs are opened is left alone until then.
    pub fn open() -> Result<Self, OpenerError> {
        let (family, flags) = (AddressFamily::INET, SocketFlags::CLOEXEC);
        let socket = socket_with(family, SocketType::DGRAM, flags, None);
        let socket = socket.map_err(|errno| OpenerError::Taps(errno.into()))?;
        Ok(Self {
            socket,
            records: Records::default(),
        })
    }

    /// The same, and what the node agent says in `directory` of the pod's interfaces.
    pub(super) fn with_records(self, directory: &Path) -> Self {
        let records = Records::open(directory);
        Self { records, ..self }
    }

    /// The same where the device has to be there.
    pub fn open_where_they_are_made() -> Result<Self, OpenerError> {
        std::fs::read_dir(TAP_DIRECTORY).map_err(OpenerError::Taps)?;
        Self::open()
    }

    pub(super) fn records(&self) -> &Records {
        &self.records
    }

    /// Opens a TAP, which is made if it is not there, and brings it up. One that was made goes with its descriptors.
    pub fn attach(&self, wanted: &TapToOpen) -> Result<Vec<OwnedFd>, TapError> {
        let name = &wanted.tap;
        let queues = queues(name, wanted.queues)?;
        if let Some(bridge) = &wanted.bridge {
            let joined = tap::join_bridge(&self.socket, name, bridge);
            joined.map_err(|source| TapError::Bridge {
                name: name.clone(),
                bridge: bridge.clone(),
                source,
            })?;
        }
        tap::bring_up(&self.socket, name).map_err(|source| TapError::Up {
            name: name.clone(),
            source,
        })?;
        Ok(queues)
    }

    /// Opens the TAP of an interface of the pod's, which is there.
    pub fn adopt(&self, wanted: &NicToOpen) -> Result<(Vec<OwnedFd>, OpenedNic), TapError> {
        let (name, facts) = self.find(&wanted.pod_interfaces)?;
        let unusable = |reason: &str| TapError::Unusable {
            name: name.clone(),
            reason: reason.to_owned(),
        };
        let record = self.records.of(&name).map_err(|source| TapError::Record {
            name: name.clone(),
            source,
        })?;
        // As at the start: what the node agent says is what was there before it.
        let HandedOn {
            mac,
            address,
            mut routes,
        } = record.unwrap_or(HandedOn {
            mac: None,
            address: facts.address,
            routes: Vec::new(),
        });
        if routes.len() > MAX_ROUTES {
            tracing::warn!("the guest gets the first {MAX_ROUTES} routes of {name:?}");
            routes.truncate(MAX_ROUTES);
        }
        let mac = mac.unwrap_or(facts.mac);
        let is_unicast = mac[0] & 1 == 0 && mac != [0; 6];
        if !is_unicast {
            return Err(unusable("it has no Ethernet address"));
        }
        let mtu =
            network::mtu_for_guest(facts.mtu).ok_or_else(|| unusable("its MTU is too small"))?;
        let tap = network::secondary_tap(&name).ok_or_else(|| unusable("its name is too long"))?;
        let queues = queues(&tap, wanted.queues)?;
        let nic = OpenedNic {
            mac,
            mtu,
            address,
            routes,
            address6: self.records.address6(&name),
        };
        Ok((queues, nic))
    }

    fn find(&self, names: &[String]) -> Result<(String, InterfaceFacts), TapError> {
        for name in names {
            match tap::look_at(&self.socket, name) {
                Ok(facts) => return Ok((name.clone(), facts)),
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => {}
                Err(source) => {
                    let name = name.clone();
                    return Err(TapError::Look { name, source });
                }
            }
        }
        Err(TapError::NoInterface(names.to_owned()))
    }
}

/// Opens so many queues of a TAP, which is made if it is not there and that is allowed.
fn queues(name: &str, count: u16) -> Result<Vec<OwnedFd>, TapError> {
    if !(1..=MAX_QUEUE_PAIRS).contains(&count) {
        return Err(TapError::Queues(count));
    }
    let queues = tap::open(device, name, count)?;
    Ok(queues.into_iter().map(OwnedFd::from).collect())
}

/// What a TAP's queue is made of.
fn device() -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = format!("{TAP_DIRECTORY}/tun");
    let device = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)?;
    Ok(device.into())
}
