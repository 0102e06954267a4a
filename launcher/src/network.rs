//! The pod's network made ready for a guest, and put back when the guest is gone.
//!
//! Called by the launcher, in the pod's network namespace, before the vm process starts. Needs
//! `CAP_NET_ADMIN` and `/dev/net/tun` unless KubeVirt's node agent already made the TAP device
//! (then the TAP is only opened), or the guest is behind passt. The layout is KubeVirt's, so that its
//! tools read it (`docs/network.md`); with the bridge binding:
//!
//! ```text
//!   before                     while the guest runs
//!   eth0  (MAC, IPs, routes)   eth0      placeholder, down, keeps MAC, MTU and IPs
//!                              eth0-nic  the pod's NIC, other MAC, no IPs, port of k6t-eth0
//!                              k6t-eth0  bridge
//!                              tap0      the guest, port of k6t-eth0; the guest has eth0's MAC
//! ```

mod adopt;
mod bridge;
mod error;
mod guard;
mod lease;
mod masquerade;
mod name_servers;
mod names;
mod netlink;
mod nft;
mod passt;
mod prepare;
mod record;
mod restore;
mod set_up;
mod state;
mod sysctl;
mod take_over;

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use devices::pod_net::dhcp::DhcpLease;
use devices::pod_net::ipv6::Ipv6Lease;
use serde::Serialize;

pub use self::error::{NetworkError, Step};
pub use self::guard::NetworkGuard;
pub(crate) use self::lease::{HandedOn, LaterLease, Resolver, handed_on, record_name};
pub use self::lease::{Route, of_files as lease_of_files};
pub use self::prepare::prepare;
pub use self::record::{NicRecord, NicStatus, show};
pub use self::state::kept_in_file;

use crate::vmi::{DhcpOptions, Port, Protocol, Subnet};

/// Where KubeVirt's node agent says what the pod's interface was.
pub(crate) const VIF_CACHE_DIR: &str = "/var/run/kubevirt-private";

/// Where runs keep what they need to put a pod's network back.
pub const STATE_DIR: &str = "/run/podvisor";

/// KubeVirt's name for the TAP of a pod's secondary interface.
pub(crate) fn secondary_tap(interface: &str) -> Option<String> {
    names::Names::of(interface, false).map(|names| names.tap)
}

/// What a guest can have of a pod interface's MTU, bytes; none if that is too little for a NIC.
pub(crate) fn mtu_for_guest(pod: u32) -> Option<u16> {
    Some(prepare::guest_mtu(pod)).filter(|mtu| *mtu >= devices::virtio::net::MIN_MTU)
}

/// How a guest NIC joins the pod's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Binding {
    /// `bridge: {}`: the guest takes over the pod NIC's MAC and IP addresses.
    Bridge,
    /// `masquerade: {}`: the guest is behind network address translation.
    Masquerade(Masquerade),
    /// `passt: {}`: the guest is behind a passt process.
    Passt {
        /// Ports that are let in, if not all.
        #[serde(skip_serializing_if = "Option::is_none")]
        ports: Option<Vec<Forward>>,
    },
}

/// A port of the pod that is one of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forward {
    /// Of which protocol.
    pub protocol: Protocol,
    /// The pod's.
    pub from: u16,
    /// The guest's.
    pub to: u16,
}

/// The guest's side of network address translation. A family is used if the pod has a global
/// address of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Masquerade {
    /// IPv4 subnet of the guest.
    pub ipv4: Subnet<Ipv4Addr>,
    /// IPv6 subnet of the guest.
    pub ipv6: Subnet<Ipv6Addr>,
    /// Ports that are let in; all if empty.
    pub ports: Vec<Port>,
}

/// One guest NIC to prepare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRequest {
    /// Name of the interface in the VMI; for logs and errors.
    pub nic_name: String,
    /// Names of the pod's interface, e.g. `eth0`; the first that exists is taken.
    pub pod_interfaces: Vec<String>,
    /// It is the pod's first network.
    pub primary: bool,
    /// MAC address of the guest; the pod interface's own if unset.
    pub mac: Option<[u8; 6]>,
    /// Queue pairs, 1 to 64; more than one makes a multi-queue TAP.
    pub queue_pairs: u16,
    /// How the guest NIC joins the pod's network.
    pub binding: Binding,
    /// What DHCP says besides what the network says.
    pub dhcp_options: DhcpOptions,
}

/// What is common to all NICs of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Directory for the state that [`prepare`](fn@prepare) needs to recover after a kill; made if missing.
    pub state_dir: PathBuf,
    /// The resolver configuration to hand on to the guest.
    pub resolv_conf: PathBuf,
    /// Directory of KubeVirt's files about interfaces that its node agent has prepared.
    pub vif_cache_dir: PathBuf,
    /// Host name for the guest; the pod's if unset.
    pub hostname: Option<String>,
    /// The VMI's `subdomain`.
    pub subdomain: Option<String>,
    /// The guest goes on from a snapshot: what the run that saved it has left prepared is taken over as it is.
    pub take_over: bool,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from(STATE_DIR),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            vif_cache_dir: PathBuf::from(VIF_CACHE_DIR),
            hostname: None,
            subdomain: None,
            take_over: false,
        }
    }
}

/// A guest NIC ready to be handed to the vm process.
#[derive(Debug)]
pub struct PreparedNetwork {
    /// Name of the interface in the VMI.
    pub nic_name: String,
    /// One TAP descriptor per queue pair. The TAP exists as long as one of them is open, so the
    /// launcher must close its copies before [`NetworkGuard::restore`] (which copes if it did not).
    pub taps: Vec<File>,
    /// The socket of passt, instead of TAPs.
    pub stream: Option<File>,
    /// MAC address of the guest.
    pub mac: [u8; 6],
    /// MTU in bytes, for the guest too.
    pub mtu: u16,
    /// What the guest's DHCP client is told; `None` if the pod has no IPv4 address.
    pub lease: Option<DhcpLease>,
    /// What the guest is told about IPv6; `None` if the pod has no IPv6 address.
    pub lease6: Option<Ipv6Lease>,
}
