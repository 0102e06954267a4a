//! Leases: what the pod knows about its network, told to the guest.

mod resolver;
mod vif_cache;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use devices::pod_net::dhcp::{DhcpLease, DhcpOptions};
use devices::pod_net::ipv6::Ipv6Lease;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol,
};
use serde::{Deserialize, Serialize};

pub(crate) use self::resolver::Resolver;
pub(super) use self::vif_cache::VifCache;
use super::names::server_address;
use crate::vmi::{GATEWAY_MAC, Subnet};

/// What all leases of a NIC have in common.
pub(super) struct Common {
    pub(super) resolver: Resolver,
    pub(super) hostname: Option<String>,
    pub(super) subdomain: Option<String>,
    pub(super) mtu: u16,
    pub(super) options: DhcpOptions,
}

/// The lease of a bridged guest by two files of its pod: the node agent's record of the interface
/// (`vif-cache-<interface>.json`), and `resolv.conf`. `None` if there is no record, or no address in it.
pub fn of_files(record: &[u8], resolver: &str, subdomain: Option<&str>) -> Option<DhcpLease> {
    let common = Common {
        resolver: Resolver::parse(resolver),
        hostname: None,
        subdomain: subdomain.map(str::to_owned),
        mtu: 1500,
        options: DhcpOptions::default(),
    };
    let record = VifCache::parse(record).ok()?;
    record.lease(Ipv4Addr::new(169, 254, 75, 10), &common)
}

/// What the guest gets of an interface by the node agent's record of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HandedOn {
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) address: Option<(Ipv4Addr, u8)>,
    pub(crate) routes: Vec<Route>,
}

/// Reads a record.
pub(crate) fn handed_on(record: &[u8]) -> io::Result<HandedOn> {
    VifCache::parse(record).map(|record| record.handed_on())
}

/// The name of the record of an interface.
pub(crate) fn record_name(interface: &str) -> String {
    vif_cache::name(interface)
}

/// A lease but for what only the pod's interface says, which is not there yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LaterLease {
    pub(crate) resolver: Resolver,
    pub(crate) hostname: String,
    pub(crate) subdomain: Option<String>,
    pub(crate) options: DhcpOptions,
    /// Number of the NIC among the guest's.
    pub(crate) index: usize,
}

impl LaterLease {
    /// The lease of a bridged guest that takes the interface's address over.
    pub(crate) fn of(&self, address: (Ipv4Addr, u8), routes: &[Route], mtu: u16) -> DhcpLease {
        let common = self.common(mtu);
        let mut lease = with_routes(address, routes, server_address(self.index), &common);
        warn(lease.fit());
        lease
    }

    /// The same for its IPv6 address. Routers are announced by the network.
    pub(crate) fn of6(&self, address: (Ipv6Addr, u8), mtu: u16) -> Ipv6Lease {
        let mut lease = self.common(mtu).lease6(address, GATEWAY_MAC);
        warn(lease.fit());
        lease
    }

    fn common(&self, mtu: u16) -> Common {
        Common {
            resolver: self.resolver.clone(),
            hostname: Some(self.hostname.clone()).filter(|name| !name.is_empty()),
            subdomain: self.subdomain.clone(),
            mtu,
            options: self.options.clone(),
        }
    }
}

fn warn(left_out: Vec<String>) {
    if !left_out.is_empty() {
        let what = left_out.join(", ");
        tracing::warn!("DHCP cannot tell the guest everything; left out: {what}");
    }
}

impl Common {
    fn lease(
        &self,
        (address, prefix_len): (Ipv4Addr, u8),
        server: Ipv4Addr,
        router: Option<Ipv4Addr>,
    ) -> DhcpLease {
        DhcpLease {
            address,
            prefix_len,
            server,
            router,
            routes: Vec::new(),
            dns: self.resolver.dns(),
            hostname: self.hostname.clone(),
            domain: self.resolver.longest(|_| true).map(str::to_owned),
            search: self.resolver.search_with(self.subdomain.as_deref()),
            mtu: self.mtu,
            options: self.options.clone(),
            any_client: false,
        }
    }

    fn lease6(&self, (address, prefix_len): (Ipv6Addr, u8), gateway_mac: [u8; 6]) -> Ipv6Lease {
        Ipv6Lease {
            address,
            prefix_len,
            gateway_mac,
            dns: self.resolver.dns6(),
            search: self.resolver.search_with(self.subdomain.as_deref()),
            mtu: self.mtu,
            router_advertisements: false,
        }
    }
}

/// An IPv4 route as DHCP tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// Where it leads.
    pub destination: Ipv4Addr,
    /// Length of the destination's prefix.
    pub prefix_len: u8,
    /// Unspecified: on the link.
    pub gateway: Ipv4Addr,
}

/// The lease that hands the pod's first global IPv4 address on, or `None` if it has none.
pub(super) fn bridge(
    addresses: &[AddressMessage],
    routes: &[RouteMessage],
    server: Ipv4Addr,
    common: &Common,
) -> Option<DhcpLease> {
    let address = addresses.iter().find_map(global_ipv4)?;
    let routes: Vec<_> = routes.iter().filter_map(ipv4_route).collect();
    Some(with_routes(address, &routes, server, common))
}

/// The lease that hands the pod's first lasting global IPv6 address on, or `None` if it has none.
/// Routers are announced by the network, as before.
pub(super) fn bridge6(
    addresses: &[AddressMessage],
    server_mac: [u8; 6],
    common: &Common,
) -> Option<Ipv6Lease> {
    let address = addresses.iter().find_map(global_ipv6)?;
    Some(common.lease6(address, server_mac))
}

/// The lease of a guest behind address translation.
pub(super) fn masquerade(subnet: &Subnet<Ipv4Addr>, common: &Common) -> DhcpLease {
    let address = (subnet.guest(), subnet.prefix_len);
    DhcpLease {
        any_client: true,
        ..common.lease(address, subnet.gateway(), Some(subnet.gateway()))
    }
}

/// The IPv6 lease of a guest behind address translation.
pub(super) fn masquerade6(
    subnet: &Subnet<Ipv6Addr>,
    gateway_mac: [u8; 6],
    common: &Common,
) -> Ipv6Lease {
    Ipv6Lease {
        router_advertisements: true,
        ..common.lease6((subnet.guest(), subnet.prefix_len), gateway_mac)
    }
}

fn with_routes(
    (address, prefix_len): (Ipv4Addr, u8),
    routes: &[Route],
    server: Ipv4Addr,
    common: &Common,
) -> DhcpLease {
    let router = routes
        .iter()
        .find(|route| route.prefix_len == 0)
        .map(|route| route.gateway);
    let router = router.filter(|gateway| !gateway.is_unspecified());
    DhcpLease {
        routes: other_routes(routes, router, address, prefix_len),
        ..common.lease((address, prefix_len), server, router)
    }
}

/// `ADDRESS/PREFIX` of an address.
pub(super) fn text(message: &AddressMessage) -> Option<String> {
    let (address, prefix_len) = ip(message)?;
    Some(format!("{address}/{prefix_len}"))
}

/// Address and prefix length of a global IPv4 address.
pub(super) fn global_ipv4(message: &AddressMessage) -> Option<(Ipv4Addr, u8)> {
    match global(message)? {
        (IpAddr::V4(address), len) => Some((address, len)),
        (IpAddr::V6(_), _) => None,
    }
}

/// Address and prefix length of a global IPv6 address that is not a temporary one.
pub(super) fn global_ipv6(message: &AddressMessage) -> Option<(Ipv6Addr, u8)> {
    let temporary = message.attributes.iter().any(|attribute| {
        matches!(attribute, AddressAttribute::Flags(flags)
            if flags.contains(AddressFlags::Secondary))
    });
    match global(message)? {
        (IpAddr::V6(address), len) if !temporary => Some((address, len)),
        _ => None,
    }
}

fn global(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let global = message.header.scope == AddressScope::Universe;
    ip(message).filter(|_| global)
}

fn ip(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    // `Local` is ours; on point-to-point links `Address` is the peer's.
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        message.attributes.iter().find_map(wanted)
    };
    let address = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = address.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    });
    Some((address?, message.header.prefix_len))
}

/// A unicast IPv4 route of the main table that somebody set.
fn ipv4_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let ours = header.table == RouteHeader::RT_TABLE_MAIN
        && header.protocol != RouteProtocol::Kernel
        && header.address_family == rtnetlink::packet_route::AddressFamily::Inet;
    if !ours {
        return None;
    }
    let mut route = Route {
        destination: Ipv4Addr::UNSPECIFIED,
        prefix_len: header.destination_prefix_length,
        gateway: Ipv4Addr::UNSPECIFIED,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                route.destination = *address;
            }
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => route.gateway = *address,
            _ => {}
        }
    }
    Some(route)
}

/// Routes besides the default one and the subnet's. A router outside the subnet is reached through
/// a route on the link.
fn other_routes(
    routes: &[Route],
    router: Option<Ipv4Addr>,
    address: Ipv4Addr,
    prefix_len: u8,
) -> Vec<(Ipv4Addr, u8, Ipv4Addr)> {
    let network = |address, len: u8| mask(len) & address;
    let subnet = (network(address, prefix_len), prefix_len);
    let mut others: Vec<_> = routes
        .iter()
        .filter(|route| route.prefix_len != 0 && (route.destination, route.prefix_len) != subnet)
        .map(|route| (route.destination, route.prefix_len, route.gateway))
        .collect();
    if let Some(router) = router {
        let near = network(router, prefix_len) == subnet.0;
        let known = others
            .iter()
            .any(|&(to, len, gateway)| gateway.is_unspecified() && network(router, len) == to);
        if !near && !known {
            others.insert(0, (router, 32, Ipv4Addr::UNSPECIFIED));
        }
    }
    // Routes on the link first: later ones may need them.
    others.sort_by_key(|&(_, _, gateway)| !gateway.is_unspecified());
    others
}

fn mask(prefix_len: u8) -> Ipv4Addr {
    let bits = u32::MAX
        .checked_shl(32 - u32::from(prefix_len.min(32)))
        .unwrap_or(0);
    Ipv4Addr::from_bits(bits)
}

#[cfg(test)]
mod tests {
    use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder};

    use super::resolver::{DEFAULT_DNS, DEFAULT_SEARCH};
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
    const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 75, 10);
    const RESOLV_CONF: &str = "nameserver 10.96.0.10\nnameserver fd00::1\n\
        search ns.svc.cluster.local svc.cluster.local cluster.local.\noptions ndots:5\n";

    fn address(prefix_len: u8) -> Vec<AddressMessage> {
        vec![
            AddressMessageBuilder::<Ipv4Addr>::new()
                .address(ADDRESS, prefix_len)
                .build(),
        ]
    }

    fn route(to: Ipv4Addr, len: u8, gateway: Option<Ipv4Addr>) -> RouteMessage {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, len);
        if let Some(gateway) = gateway {
            route = route.gateway(gateway);
        }
        route.build()
    }

    fn common(resolv_conf: &str) -> Common {
        Common {
            resolver: Resolver::parse(resolv_conf),
            hostname: Some("vm".into()),
            subdomain: None,
            mtu: 1450,
            options: DhcpOptions::default(),
        }
    }

    fn build(addresses: &[AddressMessage], routes: &[RouteMessage]) -> Option<DhcpLease> {
        bridge(addresses, routes, SERVER, &common(RESOLV_CONF))
    }

    #[test]
    fn bridge_cni_lease() {
        let addresses = address(24);
        let routes = [
            route(Ipv4Addr::new(10, 244, 1, 0), 24, None),
            route(Ipv4Addr::UNSPECIFIED, 0, Some(GATEWAY)),
            route(Ipv4Addr::new(10, 244, 0, 0), 16, Some(GATEWAY)),
        ];
        let lease = build(&addresses, &routes).expect("an IPv4 address");
        assert_eq!((lease.address, lease.prefix_len), (ADDRESS, 24));
        assert_eq!(lease.router, Some(GATEWAY));
        assert_eq!(lease.routes, [(Ipv4Addr::new(10, 244, 0, 0), 16, GATEWAY)]);
        assert_eq!(lease.dns, [Ipv4Addr::new(10, 96, 0, 10)]);
        assert_eq!(lease.domain.as_deref(), Some("ns.svc.cluster.local"));
        assert_eq!(
            lease.search,
            ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local"]
        );
        assert_eq!(lease.mtu, 1450);
    }

    #[test]
    fn a_router_outside_the_subnet_gets_a_route_on_the_link() {
        let far = Ipv4Addr::new(169, 254, 1, 1);
        let default = route(Ipv4Addr::UNSPECIFIED, 0, Some(far));
        let on_link = (far, 32, Ipv4Addr::UNSPECIFIED);
        let addresses = address(32);
        let lease = build(&addresses, std::slice::from_ref(&default)).expect("an address");
        assert_eq!((lease.router, lease.routes), (Some(far), vec![on_link]));
        let routes = [default, route(far, 32, None)];
        let lease = build(&addresses, &routes).expect("an address");
        assert_eq!(lease.routes, [on_link]);
    }

    #[test]
    fn no_ipv4_no_lease() {
        assert_eq!(build(&[], &[]), None);
        let mut link_local = address(24);
        link_local[0].header.scope = AddressScope::Link;
        assert_eq!(build(&link_local, &[]), None);
    }

    #[test]
    fn an_empty_resolver_gets_defaults() {
        let addresses = address(24);
        let lease = bridge(&addresses, &[], SERVER, &common("search .\n"));
        let lease = lease.expect("an address");
        assert_eq!(lease.dns, [DEFAULT_DNS]);
        assert_eq!(lease.search, [DEFAULT_SEARCH]);
        assert_eq!((lease.router, lease.routes), (None, Vec::new()));
    }

    #[test]
    fn subdomain_comes_first_once() {
        let addresses = address(24);
        let search = |subdomain| {
            let common = Common {
                subdomain: Some(str::to_owned(subdomain)),
                ..common(RESOLV_CONF)
            };
            let lease = bridge(&addresses, &[], SERVER, &common);
            lease.expect("an address").search
        };
        assert_eq!(search("web")[0], "web.ns.svc.cluster.local");
        assert_eq!(search("ns").len(), 3);
    }

    #[test]
    fn a_masqueraded_guest_gets_the_second_address_of_its_subnet() {
        let subnet = Subnet {
            network: Ipv4Addr::new(10, 0, 2, 0),
            prefix_len: 24,
        };
        let lease = masquerade(&subnet, &common(RESOLV_CONF));
        let gateway = Ipv4Addr::new(10, 0, 2, 1);
        assert_eq!(lease.address, Ipv4Addr::new(10, 0, 2, 2));
        assert_eq!((lease.server, lease.router), (gateway, Some(gateway)));
        assert!(lease.any_client);
        let subnet = Subnet {
            network: "fd10:0:2::".parse().expect("an address"),
            prefix_len: 120,
        };
        let lease = masquerade6(&subnet, [2, 0, 0, 0, 0, 0], &common(RESOLV_CONF));
        assert_eq!(lease.address.to_string(), "fd10:0:2::2");
        assert_eq!(
            lease.dns,
            ["fd00::1".parse::<Ipv6Addr>().expect("an address")]
        );
        assert!(lease.router_advertisements);
    }
}
