//! Prepares every NIC, or none.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use devices::virtio::net::dhcp::DhcpLease;
use devices::virtio::net::tap;

use super::guard::{Changed, NetworkGuard, runtime};
use super::lease::{self, Facts};
use super::names::{Names, server_address};
use super::netlink::{Link, Netlink};
use super::restore::{is_route_worth_saving, is_worth_saving};
use super::state::{Place, SavedInterface};
use super::{Binding, NetworkError, NetworkOptions, NetworkRequest, PreparedNetwork, bridge};

/// How long to wait for the TAP of a killed run to vanish with its last holder.
const STALE_TAP_PATIENCE: Duration = Duration::from_secs(5);
const STALE_TAP_POLL: Duration = Duration::from_millis(20);

/// Smallest MTU that a NIC can have, bytes.
const MIN_MTU: u16 = devices::virtio::net::MIN_MTU;

/// Prepares the networks of a guest, in order; a failure undoes what was done.
///
/// An interface that KubeVirt's node agent has prepared is used as it is and left as it is. One that
/// a killed run of ours has left changed is put back first.
///
/// Runs a single-threaded runtime of its own for the time of the call, so it must not be called
/// from within another one.
pub fn prepare(
    requests: &[NetworkRequest],
    options: &NetworkOptions,
) -> Result<(Vec<PreparedNetwork>, NetworkGuard), NetworkError> {
    let mut guard = NetworkGuard {
        changed: Vec::new(),
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
                reason: "its name is too long to derive others from".into(),
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
struct Task<'a> {
    netlink: &'a Netlink,
    request: &'a NetworkRequest,
    options: &'a NetworkOptions,
    /// Number of the NIC among the guest's.
    index: usize,
    names: Names,
    place: Place,
    file: PathBuf,
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
        if self.request.binding != Binding::Bridge {
            return Err(self.unusable("only the bridge binding is there yet"));
        }
        if let Some(saved) = SavedInterface::load(&self.file, &self.place) {
            self.recover(saved).await?;
        }
        let links = self.netlink.links().await?;
        let find = |name: &str| links.iter().find(|link| link.name == name);
        match (find(&self.names.interface), find(&self.names.nic)) {
            (Some(placeholder), Some(_)) if find(&self.names.tap).is_some() => {
                self.adopt(placeholder).await
            }
            (_, Some(_)) => Err(NetworkError::Unrecoverable {
                interface: self.names.interface,
                file: self.file,
            }),
            (Some(link), None) => {
                // What is not ours is not deleted when we restore, so it must not be there.
                let taken = [&self.names.bridge, &self.names.tap];
                if let Some(taken) = taken.into_iter().find(|name| find(name).is_some()) {
                    return Err(self.unusable(format!("an interface {taken:?} exists already")));
                }
                self.take_over(link, guard).await
            }
            (None, None) => Err(no_such_interface(self.request, &links)),
        }
    }

    /// Puts back what a killed run has left.
    async fn recover(&self, saved: SavedInterface) -> Result<(), NetworkError> {
        tracing::warn!(
            interface = self.names.interface,
            "an earlier run was killed; restoring its interface first"
        );
        self.wait_for_stale_tap().await?;
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
                return Err(self.unusable(format!("{} is in use by another run", self.names.tap)));
            }
            tokio::time::sleep(STALE_TAP_POLL).await;
            waited += STALE_TAP_POLL;
        }
        Ok(())
    }

    /// Uses what KubeVirt's node agent has prepared.
    async fn adopt(&self, placeholder: &Link) -> Result<PreparedNetwork, NetworkError> {
        tracing::info!(
            interface = self.names.interface,
            tap = self.names.tap,
            "TAP adopted"
        );
        let lease = self.lease(placeholder).await?;
        let taps = tap::open(&self.names.tap, self.request.queue_pairs).map_err(|source| {
            NetworkError::Tap {
                nic: self.request.nic_name.clone(),
                source,
            }
        })?;
        Ok(PreparedNetwork {
            nic_name: self.request.nic_name.clone(),
            taps,
            mac: self.guest_mac(placeholder)?,
            mtu: self.mtu(placeholder)?,
            lease,
        })
    }

    async fn take_over(
        &self,
        link: &Link,
        guard: &mut NetworkGuard,
    ) -> Result<PreparedNetwork, NetworkError> {
        let pod_mac = self.mac(link)?;
        let mtu = self.mtu(link)?;
        let lease = self.lease(link).await?;
        let mut addresses = self.netlink.addresses(link).await?;
        let mut routes = self.netlink.routes(link).await?;
        addresses.retain(is_worth_saving);
        routes.retain(is_route_worth_saving);
        let saved = SavedInterface::new(self.place.clone(), link, pod_mac, &addresses, &routes);
        if let Err(error) = saved.store(&self.file) {
            tracing::warn!(
                file = %self.file.display(), %error,
                "cannot save the pod interface's state; a kill could not be recovered from"
            );
        }
        guard.changed.push(Changed {
            names: self.names.clone(),
            saved: saved.clone(),
            file: self.file.clone(),
        });
        let server = server_address(self.index);
        let taps = bridge::set_up(self.netlink, self.request, &self.names, &saved, server).await?;
        tracing::info!(
            nic = self.request.nic_name,
            interface = self.names.interface,
            tap = self.names.tap,
            "pod interface handed to the guest"
        );
        Ok(PreparedNetwork {
            nic_name: self.request.nic_name.clone(),
            taps,
            mac: self.guest_mac(link)?,
            mtu,
            lease,
        })
    }

    async fn lease(&self, link: &Link) -> Result<Option<DhcpLease>, NetworkError> {
        let addresses = self.netlink.addresses(link).await?;
        let routes = self.netlink.routes(link).await?;
        let resolv_conf = fs::read_to_string(&self.options.resolv_conf).unwrap_or_default();
        let hostname = self.options.hostname.clone().or_else(|| {
            rustix::system::uname()
                .nodename()
                .to_str()
                .ok()
                .map(str::to_owned)
        });
        Ok(lease::build(Facts {
            addresses: &addresses,
            routes: &routes,
            resolv_conf: &resolv_conf,
            hostname: hostname.filter(|name| !name.is_empty()),
            subdomain: self.options.subdomain.as_deref(),
            server: server_address(self.index),
            mtu: self.mtu(link)?,
        }))
    }

    fn guest_mac(&self, link: &Link) -> Result<[u8; 6], NetworkError> {
        self.request.mac.map_or_else(|| self.mac(link), Ok)
    }

    fn mac(&self, link: &Link) -> Result<[u8; 6], NetworkError> {
        let unicast = |mac: &[u8; 6]| mac[0] & 1 == 0 && *mac != [0; 6];
        let reason = || self.unusable("it has no Ethernet address");
        link.mac.filter(unicast).ok_or_else(reason)
    }

    fn mtu(&self, link: &Link) -> Result<u16, NetworkError> {
        let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
        if mtu < MIN_MTU {
            return Err(self.unusable(format!("its MTU {mtu} is below {MIN_MTU}")));
        }
        Ok(mtu)
    }

    fn unusable(&self, reason: impl Into<String>) -> NetworkError {
        NetworkError::Unusable {
            nic: self.request.nic_name.clone(),
            interface: self.names.interface.clone(),
            reason: reason.into(),
        }
    }
}
