//! The DHCP answers given to the guest inside the virtio-net transmit path.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// What the guest's DHCPv4 client is told (RFC 2131, 2132, 3397, 3442).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DhcpLease {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Prefix length of the subnet, 0 to 32.
    pub prefix_len: u8,
    /// Server identifier; the address the answers come from.
    pub server: Ipv4Addr,
    /// Default router.
    pub router: Option<Ipv4Addr>,
    /// Further classless routes: destination, prefix length, gateway.
    pub routes: Vec<(Ipv4Addr, u8, Ipv4Addr)>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Host name.
    pub hostname: Option<String>,
    /// Domain name.
    pub domain: Option<String>,
    /// Domain search list.
    pub search: Vec<String>,
    /// Interface MTU.
    pub mtu: u16,
}
