//! The pod's resolver configuration, told to the guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use devices::pod_net::is_domain_name;

/// The name server if the pod has none, as in KubeVirt.
pub(super) const DEFAULT_DNS: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// The search list if the pod has none, as in KubeVirt.
pub(super) const DEFAULT_SEARCH: &str = "cluster.local";

/// resolv.conf(5) as far as DHCP can tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    servers: Vec<IpAddr>,
    search: Vec<String>,
}

impl Resolver {
    pub(crate) fn parse(text: &str) -> Self {
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

    /// All servers, in their order.
    pub(crate) fn servers(&self) -> &[IpAddr] {
        &self.servers
    }

    pub(super) fn dns(&self) -> Vec<Ipv4Addr> {
        if self.servers.is_empty() {
            return vec![DEFAULT_DNS];
        }
        let v4 = |server: &IpAddr| match server {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        };
        self.servers.iter().filter_map(v4).collect()
    }

    /// The longest search domain that `wanted` accepts and DHCP can tell, the first of equals.
    pub(super) fn longest(&self, wanted: impl Fn(&str) -> bool) -> Option<&str> {
        let names = self.search.iter().map(String::as_str).rev();
        names
            .filter(|name| is_domain_name(name) && wanted(name))
            .max_by_key(|name| name.len())
    }

    pub(super) fn dns6(&self) -> Vec<Ipv6Addr> {
        let v6 = |server: &IpAddr| match server {
            IpAddr::V6(address) => Some(*address),
            IpAddr::V4(_) => None,
        };
        self.servers.iter().filter_map(v6).collect()
    }

    /// The search list, with the subdomain's first.
    pub(super) fn search_with(&self, subdomain: Option<&str>) -> Vec<String> {
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
