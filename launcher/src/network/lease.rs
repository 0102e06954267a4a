//! The DHCP lease: what the pod knows about its network, told to the guest.

use std::net::{IpAddr, Ipv4Addr};

use devices::virtio::net::dhcp::{DhcpLease, DhcpOptions};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol,
};

/// The name server if the pod has none, as in KubeVirt.
const DEFAULT_DNS: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// The search list if the pod has none, as in KubeVirt.
const DEFAULT_SEARCH: &str = "cluster.local";

/// What the lease is made of.
pub(super) struct Facts<'a> {
    pub(super) addresses: &'a [AddressMessage],
    pub(super) routes: &'a [RouteMessage],
    /// Contents of resolv.conf.
    pub(super) resolv_conf: &'a str,
    pub(super) hostname: Option<String>,
    pub(super) subdomain: Option<&'a str>,
    pub(super) server: Ipv4Addr,
    pub(super) mtu: u16,
}

/// An IPv4 route as DHCP tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    destination: Ipv4Addr,
    prefix_len: u8,
    /// Unspecified: on the link.
    gateway: Ipv4Addr,
}

/// The lease, or `None` if the pod has no global IPv4 address.
pub(super) fn build(facts: Facts<'_>) -> Option<DhcpLease> {
    let (address, prefix_len) = facts.addresses.iter().find_map(global_ipv4)?;
    let routes: Vec<_> = facts.routes.iter().filter_map(ipv4_route).collect();
    let router = routes
        .iter()
        .find(|route| route.prefix_len == 0)
        .map(|route| route.gateway);
    let router = router.filter(|gateway| !gateway.is_unspecified());
    let others = other_routes(&routes, router, address, prefix_len);
    let resolver = Resolver::parse(facts.resolv_conf);
    Some(DhcpLease {
        address,
        prefix_len,
        server: facts.server,
        router,
        routes: others,
        dns: resolver.dns(),
        hostname: facts.hostname,
        domain: resolver.longest(|_| true).map(str::to_owned),
        search: resolver.search_with(facts.subdomain),
        mtu: facts.mtu,
        options: DhcpOptions::default(),
        any_client: false,
    })
}

/// Address and prefix length of a global IPv4 address.
pub(super) fn global_ipv4(message: &AddressMessage) -> Option<(Ipv4Addr, u8)> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
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
    match address? {
        IpAddr::V4(address) => Some((address, message.header.prefix_len)),
        IpAddr::V6(_) => None,
    }
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

/// resolv.conf(5) as far as DHCP can tell it.
#[derive(Debug, Default)]
struct Resolver {
    servers: Vec<IpAddr>,
    search: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    resolver
                        .servers
                        .extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                // The last of them wins.
                Some("search" | "domain") => {
                    let names = words.map(|word| word.trim_end_matches('.'));
                    resolver.search = names
                        .filter(|name| !name.is_empty())
                        .map(str::to_owned)
                        .collect();
                }
                _ => {}
            }
        }
        if resolver.search.is_empty() {
            resolver.search.push(DEFAULT_SEARCH.to_owned());
        }
        resolver
    }

    fn dns(&self) -> Vec<Ipv4Addr> {
        if self.servers.is_empty() {
            return vec![DEFAULT_DNS];
        }
        let v4 = |server: &IpAddr| match server {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        };
        self.servers.iter().filter_map(v4).collect()
    }

    /// The longest search domain that `wanted` accepts, the first of equals.
    fn longest(&self, wanted: impl Fn(&str) -> bool) -> Option<&str> {
        let names = self.search.iter().map(String::as_str).rev();
        names
            .filter(|name| wanted(name))
            .max_by_key(|name| name.len())
    }

    /// The search list, with the subdomain's first.
    fn search_with(&self, subdomain: Option<&str>) -> Vec<String> {
        let service = self.longest(|name| name.contains(".svc."));
        let extra = subdomain.zip(service).and_then(|(subdomain, service)| {
            let prefix = format!("{subdomain}.");
            (!service.starts_with(&prefix)).then(|| format!("{prefix}{service}"))
        });
        extra
            .into_iter()
            .chain(self.search.iter().cloned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder};

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

    fn facts<'a>(addresses: &'a [AddressMessage], routes: &'a [RouteMessage]) -> Facts<'a> {
        Facts {
            addresses,
            routes,
            resolv_conf: RESOLV_CONF,
            hostname: Some("vm".into()),
            subdomain: None,
            server: SERVER,
            mtu: 1450,
        }
    }

    #[test]
    fn bridge_cni_lease() {
        let addresses = address(24);
        let routes = [
            route(Ipv4Addr::new(10, 244, 1, 0), 24, None),
            route(Ipv4Addr::UNSPECIFIED, 0, Some(GATEWAY)),
            route(Ipv4Addr::new(10, 244, 0, 0), 16, Some(GATEWAY)),
        ];
        let lease = build(facts(&addresses, &routes)).expect("an IPv4 address");
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
        let lease = build(facts(&addresses, std::slice::from_ref(&default))).expect("an address");
        assert_eq!((lease.router, lease.routes), (Some(far), vec![on_link]));
        let routes = [default, route(far, 32, None)];
        let lease = build(facts(&addresses, &routes)).expect("an address");
        assert_eq!(lease.routes, [on_link]);
    }

    #[test]
    fn no_ipv4_no_lease() {
        assert_eq!(build(facts(&[], &[])), None);
        let mut link_local = address(24);
        link_local[0].header.scope = AddressScope::Link;
        assert_eq!(build(facts(&link_local, &[])), None);
    }

    #[test]
    fn an_empty_resolver_gets_defaults() {
        let addresses = address(24);
        let lease = build(Facts {
            resolv_conf: "search .\n",
            ..facts(&addresses, &[])
        });
        let lease = lease.expect("an address");
        assert_eq!(lease.dns, [DEFAULT_DNS]);
        assert_eq!(lease.search, [DEFAULT_SEARCH]);
        assert_eq!((lease.router, lease.routes), (None, Vec::new()));
    }

    #[test]
    fn subdomain_comes_first_once() {
        let addresses = address(24);
        let search = |subdomain| {
            let facts = Facts {
                subdomain: Some(subdomain),
                ..facts(&addresses, &[])
            };
            build(facts).expect("an address").search
        };
        assert_eq!(search("web")[0], "web.ns.svc.cluster.local");
        assert_eq!(search("ns").len(), 3);
    }
}
