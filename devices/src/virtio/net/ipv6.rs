//! The IPv6 answers given to the guest inside the virtio-net transmit path.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

/// What the guest is told about its IPv6 network, by DHCPv6 and by router advertisements. Leases
/// last 999 days, as KubeVirt's do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ipv6Lease {
    /// The guest's address.
    pub address: Ipv6Addr,
    /// Prefix length of the subnet, 0 to 128; advertised as on the link.
    pub prefix_len: u8,
    /// MAC address of the gateway, which is the DHCPv6 server (its DUID) and the guest's router. The
    /// router's link-local address follows from it as on Linux (RFC 4291, appendix A).
    pub gateway_mac: [u8; 6],
    /// Name servers.
    pub dns: Vec<Ipv6Addr>,
    /// Domain search list.
    pub search: Vec<String>,
    /// MTU of the link, bytes.
    pub mtu: u16,
    /// Answer router solicitations too: for a network without a router that does (masquerade).
    pub router_advertisements: bool,
}
