//! Prepares every NIC, or none.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use devices::pod_net::dhcp::DhcpLease;
use devices::pod_net::ipv6::Ipv6Lease;
use devices::tap;
use rustix::fs::{Mode, OFlags};

use super::Forward;
use super::guard::{Changed, NetworkGuard, forget, runtime};
use super::lease::{Common, Resolver};
use super::name_servers;
use super::names::Names;
use super::netlink::{Link, Netlink};
use super::passt::{self, Passt};
use super::record::{self, NicRecord};
use super::state::{Place, SavedInterface};
use super::{Binding, NetworkError, NetworkOptions, NetworkRequest, PreparedNetwork};

/// What TAPs are opened by.
const TAP_DEVICE: &str = "/dev/net/tun";

/// How long to wait for the TAP of a killed run to vanish with its last holder.
const STALE_TAP_PATIENCE: Duration = Duration::from_secs(5);
const STALE_TAP_POLL: Duration = Duration::from_millis(20);

/// Smallest MTU that a NIC can have, bytes.
const MIN_MTU: u16 = devices::virtio::net::MIN_MTU;

/// Largest MTU of a TAP device: 16 bits less an Ethernet header, bytes.
const MAX_MTU: u16 = u16::MAX - 14;

/// Things left out that a message names; the others are counted.
const MAX_NAMED: usize = 8;

/// What the guest, its TAP and their bridge can have of the pod interface's MTU, bytes.
pub(super) fn guest_mtu(pod: u32) -> u16 {
    u16::try_from(pod).unwrap_or(MAX_MTU).min(MAX_MTU)
}

/// A list in words, its tail counted.
fn shortened(list: &[String]) -> String {
    let named = &list[..list.len().min(MAX_NAMED)];
    match list.len() - named.len() {
        0 => named.join(", "),
        more => format!("{}, and {more} more", named.join(", ")),
    }
}

/// Prepares the networks of a guest, in order; a failure undoes what was done.
///
/// An interface that KubeVirt's node agent has prepared is used as it is and left as it is. One that
/// an earlier run of ours has left changed is put back first, or taken over if `options` say so.
///
/// Runs a single-threaded runtime of its own for the time of the call, so it must not be called
/// from within another one.
pub fn prepare(
    requests: &[NetworkRequest],
    options: &NetworkOptions,
) -> Result<(Vec<PreparedNetwork>, NetworkGuard), NetworkError> {
    let mut guard = NetworkGuard {
        changed: Vec::new(),
        passt: Vec::new(),
        records: Vec::new(),
    };
    if requests.is_empty() {
        return Ok((Vec::new(), guard));
    }
    let runtime = runtime()?;
    let prepared = runtime.block_on(async {
        let netlink = Netlink::connect()?;
        let mut prepared = Vec::new();
        for (index, request) in requests.iter().enumerate() {
            let task = Task::new(&netlink, request, options, index).await?;
            prepared.push(task.run(&mut guard).await?);
        }
        Ok(prepared)
    });
    drop(runtime);
    // An error drops the guard, which undoes the NICs before this one and what was begun of it.
    prepared.map(|prepared| (prepared, guard))
}

/// The names for the first of the possible pod interfaces that is there, perhaps as a NIC that a
/// killed run has renamed.
async fn choose_interface(
    netlink: &Netlink,
    request: &NetworkRequest,
) -> Result<Names, NetworkError> {
    let links = netlink.links().await?;
    let is_there = |name: &str| links.iter().any(|link| link.name == name);
    for interface in &request.pod_interfaces {
        let Some(names) = Names::of(interface, request.primary) else {
            return Err(NetworkError::Unusable {
                nic: request.nic_name.clone(),
                interface: interface.clone(),
                reason: "its name is too long, or not one, to derive others from".into(),
            });
        };
        if is_there(&names.interface) || is_there(&names.nic) {
            return Ok(names);
        }
    }
    Err(no_such_interface(request, &links))
}

fn no_such_interface(request: &NetworkRequest, links: &[Link]) -> NetworkError {
    NetworkError::NoSuchInterface {
        nic: request.nic_name.clone(),
        interfaces: request.pod_interfaces.clone(),
        present: links.iter().map(|link| link.name.clone()).collect(),
    }
}

/// The preparation of one NIC.
pub(super) struct Task<'a> {
    pub(super) netlink: &'a Netlink,
    pub(super) request: &'a NetworkRequest,
    pub(super) options: &'a NetworkOptions,
    /// Number of the NIC among the guest's.
    pub(super) index: usize,
    pub(super) names: Names,
    pub(super) place: Place,
    pub(super) file: PathBuf,
}

impl<'a> Task<'a> {
    async fn new(
        netlink: &'a Netlink,
        request: &'a NetworkRequest,
        options: &'a NetworkOptions,
        index: usize,
    ) -> Result<Self, NetworkError> {
        let names = choose_interface(netlink, request).await?;
        let place = Place::here().map_err(NetworkError::Netlink)?;
        let file = place.file(&options.state_dir, &names.interface);
        Ok(Self {
            netlink,
            request,
            options,
            index,
            names,
            place,
            file,
        })
    }

    async fn run(self, guard: &mut NetworkGuard) -> Result<PreparedNetwork, NetworkError> {
        let mut prepared = self.prepare(guard).await?;
        self.fit_leases(&mut prepared);
        let ours = |changed: &Changed| changed.names == self.names;
        let adopted = !prepared.taps.is_empty() && !guard.changed.iter().any(ours);
        let record = NicRecord::new(self.request, &self.names, &prepared, adopted);
        let (directory, interface) = (&self.options.state_dir, &self.names.interface);
        let file = self.place.record(directory, interface);
        guard.records.extend(record.store(file));
        Ok(prepared)
    }

    async fn prepare(&self, guard: &mut NetworkGuard) -> Result<PreparedNetwork, NetworkError> {
        let needs_tap = !matches!(self.request.binding, Binding::Passt { .. });
        if let Some(saved) = self.saved().await? {
            self.wait_for_earlier_run().await?;
            let links = self.netlink.links().await?;
            let left = self.left(&saved, &links);
            if let Some(left) = left.filter(|_| self.options.take_over) {
                return self.take_over(left, guard).await;
            }
            self.recover(saved).await?;
        } else if needs_tap && self.netlink.link(&self.names.bridge).await?.is_none() {
            // A run that was killed before it saved anything may not be quite dead.
            self.wait_for_stale_tap().await?;
        }
        let links = self.netlink.links().await?;
        let find = |name: &str| links.iter().find(|link| link.name == name);
        let Some(link) = find(&self.names.interface) else {
            return Err(no_such_interface(self.request, &links));
        };
        let (nic, bridge, tap) = (
            find(&self.names.nic),
            find(&self.names.bridge),
            find(&self.names.tap),
        );
        match (&self.request.binding, bridge, tap) {
            (Binding::Passt { ports }, _, _) if nic.is_none() => {
                self.start_passt(link, ports.as_deref(), guard)
            }
            (Binding::Bridge, Some(_), Some(_)) if nic.is_some() => self.adopt_bridge(link).await,
            (_, _, _) if nic.is_some() => Err(NetworkError::Unrecoverable {
                interface: self.names.interface.clone(),
                file: self.file.clone(),
            }),
            (Binding::Masquerade(masquerade), Some(bridge), Some(_)) => {
                self.adopt_masquerade(link, bridge, masquerade).await
            }
            // What is not ours is not deleted when we restore, so it must not be there.
            (_, Some(taken), _) | (_, None, Some(taken)) => {
                let taken = &taken.name;
                Err(self.unusable(format!("an interface {taken:?} exists already")))
            }
            (Binding::Masquerade(masquerade), None, None) => {
                self.set_up_masquerade(link, masquerade, guard).await
            }
            (_, None, None) => self.set_up_bridge(link, guard).await,
        }
    }

    /// Leaves out what the answers to the guest's DHCP clients cannot carry.
    fn fit_leases(&self, prepared: &mut PreparedNetwork) {
        let v4 = prepared.lease.as_mut().map(DhcpLease::fit);
        let v6 = prepared.lease6.as_mut().map(Ipv6Lease::fit);
        for (protocol, left_out) in [("DHCP", v4), ("DHCPv6", v6)] {
            let left_out = left_out.unwrap_or_default();
            if !left_out.is_empty() {
                let nic = &self.request.nic_name;
                let what = shortened(&left_out);
                tracing::warn!(
                    nic,
                    "{protocol} cannot tell the guest everything; left out: {what}"
                );
            }
        }
    }

    /// How the interface was before a killed run has changed it.
    async fn saved(&self) -> Result<Option<SavedInterface>, NetworkError> {
        let interface = &self.names.interface;
        let Some(saved) = SavedInterface::load(&self.file, &self.place, interface) else {
            return Ok(None);
        };
        if saved.is_in(&self.netlink.links().await?, &self.names) {
            return Ok(Some(saved));
        }
        tracing::warn!(
            interface, file = %self.file.display(),
            "dropping the state of a run that did not change this interface: it ended before, or was \
             in another pod"
        );
        forget(&self.file);
        Ok(None)
    }

    /// Refuses to touch what a run has changed that lives.
    async fn wait_for_earlier_run(&self) -> Result<(), NetworkError> {
        let record = self
            .place
            .record(&self.options.state_dir, &self.names.interface);
        if record::is_held(&record) {
            return Err(self.in_use());
        }
        self.wait_for_stale_tap().await
    }

    /// Puts back what a run has left that was killed or saved its guest.
    async fn recover(&self, saved: SavedInterface) -> Result<(), NetworkError> {
        tracing::warn!(
            interface = self.names.interface,
            "an earlier run has left its guest's network; restoring the pod's first"
        );
        let changed = Changed {
            names: self.names.clone(),
            saved,
            file: self.file.clone(),
        };
        changed.undo(self.netlink).await
    }

    /// The TAP lives as long as somebody has it open: the dying vm process of the earlier run, or
    /// the live one of a launcher that shares this namespace.
    async fn wait_for_stale_tap(&self) -> Result<(), NetworkError> {
        let mut waited = Duration::ZERO;
        while self.netlink.link(&self.names.tap).await?.is_some() {
            if waited >= STALE_TAP_PATIENCE {
                return Err(self.in_use());
            }
            tokio::time::sleep(STALE_TAP_POLL).await;
            waited += STALE_TAP_POLL;
        }
        Ok(())
    }

    fn start_passt(
        &self,
        link: &Link,
        ports: Option<&[Forward]>,
        guard: &mut NetworkGuard,
    ) -> Result<PreparedNetwork, NetworkError> {
        let prepared = self.prepared(link)?;
        let (stream, passt) = Passt::start(&passt::Spec {
            nic: &prepared.nic_name,
            interface: &self.names.interface,
            mtu: prepared.mtu,
            ports,
            name_servers: &name_servers::in_place_of(&self.options.resolv_conf),
        })?;
        guard.passt.push(passt);
        tracing::info!(
            nic = prepared.nic_name,
            interface = self.names.interface,
            "passt is ready"
        );
        Ok(PreparedNetwork {
            stream: Some(stream),
            ..prepared
        })
    }

    /// What does not depend on the binding, without TAPs and leases.
    pub(super) fn prepared(&self, link: &Link) -> Result<PreparedNetwork, NetworkError> {
        Ok(PreparedNetwork {
            nic_name: self.request.nic_name.clone(),
            taps: Vec::new(),
            stream: None,
            mac: self.guest_mac(link)?,
            mtu: self.mtu(link)?,
            lease: None,
            lease6: None,
        })
    }

    /// What all leases of the NIC have in common.
    pub(super) fn common(&self, link: &Link) -> Result<Common, NetworkError> {
        let resolv_conf = fs::read_to_string(&self.options.resolv_conf).unwrap_or_default();
        let hostname = self.options.hostname.clone().or_else(|| {
            rustix::system::uname()
                .nodename()
                .to_str()
                .ok()
                .map(str::to_owned)
        });
        Ok(Common {
            resolver: Resolver::parse(&resolv_conf),
            hostname: hostname.filter(|name| !name.is_empty()),
            subdomain: self.options.subdomain.clone(),
            mtu: self.mtu(link)?,
            options: self.request.dhcp_options.clone(),
        })
    }

    pub(super) fn open_taps(&self) -> Result<Vec<File>, NetworkError> {
        let device = || {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            Ok(rustix::fs::open(TAP_DEVICE, flags, Mode::empty())?.into())
        };
        let taps = tap::open(device, &self.names.tap, self.request.queue_pairs);
        taps.map_err(|source| NetworkError::Tap {
            nic: self.request.nic_name.clone(),
            source,
        })
    }

    pub(super) fn tell(&self, what: &str) {
        tracing::info!(
            nic = self.request.nic_name,
            interface = self.names.interface,
            tap = self.names.tap,
            "{what}"
        );
    }

    pub(super) fn guest_mac(&self, link: &Link) -> Result<[u8; 6], NetworkError> {
        self.request.mac.map_or_else(|| self.mac(link), Ok)
    }

    pub(super) fn mac(&self, link: &Link) -> Result<[u8; 6], NetworkError> {
        let unicast = |mac: &[u8; 6]| mac[0] & 1 == 0 && *mac != [0; 6];
        let reason = || self.unusable("it has no Ethernet address");
        link.mac.filter(unicast).ok_or_else(reason)
    }

    fn mtu(&self, link: &Link) -> Result<u16, NetworkError> {
        let mtu = guest_mtu(link.mtu);
        if mtu < MIN_MTU {
            return Err(self.unusable(format!("its MTU {mtu} is below {MIN_MTU}")));
        }
        Ok(mtu)
    }

    fn in_use(&self) -> NetworkError {
        self.unusable(format!("{} is in use by another run", self.names.tap))
    }

    pub(super) fn unusable(&self, reason: impl Into<String>) -> NetworkError {
        NetworkError::Unusable {
            nic: self.request.nic_name.clone(),
            interface: self.names.interface.clone(),
            reason: reason.into(),
        }
    }
}
