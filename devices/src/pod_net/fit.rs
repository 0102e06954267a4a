//! Leases as far as one answer carries them. What a pod may have can be more: a search list alone
//! may have 2048 bytes, and Linux allows host names that DNS does not.

use super::dhcp::{self, DhcpLease};
use super::ipv6::{self, Ipv6Lease};
use super::names;

/// A list of a lease, the bytes that it takes in an answer, and how to leave out its last element.
type Part<L> = (usize, fn(&mut L) -> Option<String>);

impl DhcpLease {
    /// Leaves out what DHCPv4 cannot tell, from the end of the longest list; what that was.
    pub fn fit(&mut self) -> Vec<String> {
        let mut left_out = Vec::new();
        self.hostname = self
            .hostname
            .take()
            .and_then(|name| fit_hostname(name, &mut left_out));
        let domain = self.domain.take();
        self.domain = domain.filter(|name| check_name("domain", name, &mut left_out));
        fit_search(&mut self.search, &mut left_out);
        while dhcp::encoded_len(self).is_ok_and(|len| len > dhcp::MAX_OPTIONS) {
            let private = self.options.private_options.iter();
            let parts: [Part<Self>; 5] = [
                (names::encoded_len(&self.search), |lease| {
                    pop_search(&mut lease.search)
                }),
                (private.map(|(_, value)| 2 + value.len()).sum(), |lease| {
                    let (code, _) = lease.options.private_options.pop()?;
                    Some(format!("option {code}"))
                }),
                (self.options.ntp_servers.len() * 4, |lease| {
                    Some(format!("NTP server {}", lease.options.ntp_servers.pop()?))
                }),
                (self.routes.len() * 9, |lease| {
                    let (to, len, _) = lease.routes.pop()?;
                    Some(format!("route to {to}/{len}"))
                }),
                (self.dns.len() * 4, |lease| {
                    Some(format!("name server {}", lease.dns.pop()?))
                }),
            ];
            match leave_out(parts) {
                Some(pop) => left_out.extend(pop(self)),
                None => break,
            }
        }
        left_out
    }
}

impl Ipv6Lease {
    /// Leaves out what DHCPv6 cannot tell, from the end of the longer list; what that was. Router
    /// advertisements hold none of it.
    pub fn fit(&mut self) -> Vec<String> {
        let mut left_out = Vec::new();
        fit_search(&mut self.search, &mut left_out);
        while ipv6::encoded_len(self).is_ok_and(|len| len > ipv6::MAX_OPTIONS) {
            let parts: [Part<Self>; 2] = [
                (names::encoded_len(&self.search), |lease| {
                    pop_search(&mut lease.search)
                }),
                (self.dns.len() * 16, |lease| {
                    Some(format!("name server {}", lease.dns.pop()?))
                }),
            ];
            match leave_out(parts) {
                Some(pop) => left_out.extend(pop(self)),
                None => break,
            }
        }
        left_out
    }
}

/// How to make the longest part shorter; `None` if all are empty.
fn leave_out<L, const N: usize>(parts: [Part<L>; N]) -> Option<fn(&mut L) -> Option<String>> {
    let longest = parts.into_iter().max_by_key(|(len, _)| *len);
    longest.filter(|(len, _)| *len > 0).map(|(_, pop)| pop)
}

fn pop_search(search: &mut Vec<String>) -> Option<String> {
    Some(format!("search domain {:?}", search.pop()?))
}

/// Leaves out names that DNS does not have.
fn fit_search(search: &mut Vec<String>, left_out: &mut Vec<String>) {
    search.retain(|name| check_name("search domain", name, left_out));
}

fn check_name(what: &str, name: &str, left_out: &mut Vec<String>) -> bool {
    let good = names::checked(name).is_ok();
    if !good {
        left_out.push(format!("{what} {name:?} (not a domain name)"));
    }
    good
}

/// The name with its first label cut to what DNS allows, as Kubernetes cuts the host names of pods.
fn fit_hostname(name: String, left_out: &mut Vec<String>) -> Option<String> {
    if names::checked(&name).is_ok() {
        return Some(name);
    }
    let (label, rest) = name.split_at(name.find('.').unwrap_or(name.len()));
    let cut = label
        .get(..names::MAX_LABEL.min(label.len()))
        .unwrap_or_default();
    let short = format!("{}{rest}", cut.trim_end_matches('-'));
    let good = names::checked(&short).is_ok();
    let told = if good {
        format!("{short:?} is told")
    } else {
        "none is told".to_owned()
    };
    left_out.push(format!("host name {name:?} (not a domain name; {told})"));
    good.then_some(short)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::super::dhcp::{DhcpOptions, DhcpResponder};
    use super::super::ipv6::Ipv6Responder;
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn lease() -> DhcpLease {
        DhcpLease {
            address: Ipv4Addr::new(10, 0, 0, 2),
            prefix_len: 24,
            server: Ipv4Addr::new(10, 0, 0, 1),
            router: Some(Ipv4Addr::new(10, 0, 0, 1)),
            routes: Vec::new(),
            dns: vec![Ipv4Addr::new(10, 0, 0, 1)],
            hostname: Some("vm".into()),
            domain: Some("a.example".into()),
            search: vec!["a.example".into()],
            mtu: 1500,
            options: DhcpOptions::default(),
            any_client: false,
        }
    }

    fn lease6() -> Ipv6Lease {
        Ipv6Lease {
            address: "fd00::2".parse().expect("an address"),
            prefix_len: 64,
            gateway_mac: MAC,
            dns: vec![Ipv6Addr::LOCALHOST],
            search: vec!["a.example".into()],
            mtu: 1500,
            router_advertisements: true,
        }
    }

    fn long_search() -> Vec<String> {
        let label = "l".repeat(50);
        (0..32).map(|n| format!("n{n}.{label}.example")).collect()
    }

    #[test]
    fn what_fits_stays() {
        let mut given = lease();
        assert_eq!(given.fit(), [""; 0]);
        assert_eq!(given, lease());
        let mut given = lease6();
        assert_eq!(given.fit(), [""; 0]);
        assert_eq!(given, lease6());
    }

    #[test]
    fn a_long_search_list_loses_its_tail() {
        let mut given = DhcpLease {
            search: long_search(),
            ..lease()
        };
        let left_out = given.fit();
        assert!(
            left_out[0].starts_with("search domain \"n31."),
            "{left_out:?}"
        );
        assert_eq!(given.search.len() + left_out.len(), 32);
        assert!(given.search.len() > 10, "as much as there is room for");
        assert_eq!(given.search[..], long_search()[..given.search.len()]);
        DhcpResponder::new(&given, MAC).expect("fits");
        let mut given = Ipv6Lease {
            search: long_search(),
            ..lease6()
        };
        assert!(!given.fit().is_empty() && given.search.len() > 10);
        Ipv6Responder::new(&given).expect("fits");
    }

    #[test]
    fn whatever_is_long_loses_its_tail() {
        let options = DhcpOptions {
            private_options: (224..=254).map(|code| (code, "x".repeat(255))).collect(),
            ntp_servers: vec![Ipv4Addr::LOCALHOST; 63],
            ..DhcpOptions::default()
        };
        let routes = vec![(Ipv4Addr::new(10, 1, 0, 0), 16, Ipv4Addr::new(10, 0, 0, 1)); 500];
        let dns = vec![Ipv4Addr::LOCALHOST; 1000];
        let mut given = DhcpLease {
            options,
            routes,
            dns,
            ..lease()
        };
        let left_out = given.fit().join(" ");
        for what in [
            "option 254",
            "route to 10.1.0.0/16",
            "name server 127.0.0.1",
        ] {
            assert!(left_out.contains(what), "{what}");
        }
        assert_eq!(given.search, ["a.example"]);
        assert!(!given.dns.is_empty() && !given.routes.is_empty());
        DhcpResponder::new(&given, MAC).expect("fits");
        let mut given = Ipv6Lease {
            dns: vec![Ipv6Addr::LOCALHOST; 5000],
            ..lease6()
        };
        assert!(!given.fit().is_empty() && given.dns.len() > 50);
        Ipv6Responder::new(&given).expect("fits");
    }

    #[test]
    fn names_that_dns_does_not_have() {
        let long = "l".repeat(64);
        let bad = || {
            vec![
                format!("{long}.example"),
                "good.example".into(),
                "a..b".into(),
            ]
        };
        let mut given = DhcpLease {
            hostname: Some(long.clone()),
            domain: Some(bad()[0].clone()),
            search: bad(),
            ..lease()
        };
        let left_out = given.fit();
        assert_eq!(left_out.len(), 4, "{left_out:?}");
        assert_eq!(given.hostname, Some("l".repeat(63)));
        assert_eq!(
            (given.domain.as_deref(), &given.search[..]),
            (None, &["good.example".to_owned()][..])
        );
        DhcpResponder::new(&given, MAC).expect("fits");
        let mut given = Ipv6Lease {
            search: bad(),
            ..lease6()
        };
        assert_eq!(given.fit().len(), 2);
        Ipv6Responder::new(&given).expect("fits");
        for (name, told) in [
            ("ä".repeat(40), None),
            ("a..b".into(), None),
            (format!("{long}.b"), Some(format!("{}.b", "l".repeat(63)))),
        ] {
            let mut given = DhcpLease {
                hostname: Some(name),
                ..lease()
            };
            assert_eq!((given.fit().len(), given.hostname), (1, told));
        }
    }
}
