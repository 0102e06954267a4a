//! What KubeVirt's node agent says about a pod interface before it changed it.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use devices::pod_net::dhcp::DhcpLease;
use serde::Deserialize;

use super::{Common, HandedOn, Route, with_routes};
use crate::resources;

/// Size of such a file, bytes; one with hundreds of routes has a tenth of it.
const MAX_BYTES: u64 = 1 << 20;

/// `vif-cache-<interface>.json`, as far as the guest's lease needs it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::network) struct VifCache {
    #[serde(rename = "IP")]
    ip: Network,
    /// Base64.
    #[serde(rename = "MAC")]
    mac: String,
    #[serde(rename = "Routes")]
    routes: Option<Vec<CachedRoute>>,
    #[serde(rename = "Gateway")]
    gateway: String,
    #[serde(rename = "IPAMDisabled")]
    ipam_disabled: bool,
}

/// Go's `net.IPNet`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Network {
    #[serde(rename = "IP")]
    ip: String,
    /// Base64 of the mask's bytes.
    #[serde(rename = "Mask")]
    mask: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CachedRoute {
    /// Missing: the default route.
    #[serde(rename = "Dst")]
    destination: Option<Network>,
    #[serde(rename = "Gw")]
    gateway: Option<String>,
}

/// Its name for an interface.
pub(in crate::network) fn name(interface: &str) -> String {
    format!("vif-cache-{interface}.json")
}

impl VifCache {
    /// The file about `interface` in `directory`; `None` if there is no such file.
    pub(in crate::network) fn load(directory: &Path, interface: &str) -> io::Result<Option<Self>> {
        let path = directory.join(name(interface));
        let text = match resources::read_file("agent's file", &path, MAX_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        Self::parse(&text).map(Some)
    }

    pub(in crate::network) fn parse(text: &[u8]) -> io::Result<Self> {
        Ok(serde_json::from_slice(text)?)
    }

    /// The guest's MAC address.
    pub(in crate::network) fn mac(&self) -> Option<[u8; 6]> {
        base64(&self.mac)?.try_into().ok()
    }

    /// The lease; `None` if the pod has no IPv4 address to hand on.
    pub(in crate::network) fn lease(&self, server: Ipv4Addr, common: &Common) -> Option<DhcpLease> {
        let routes = self.routes();
        let address = self.address()?;
        Some(with_routes(address, &routes, server, common))
    }

    /// What a guest gets of it.
    pub(in crate::network) fn handed_on(&self) -> HandedOn {
        HandedOn {
            mac: self.mac(),
            address: self.address(),
            routes: self.routes(),
        }
    }

    fn address(&self) -> Option<(Ipv4Addr, u8)> {
        self.ip.parse().filter(|_| !self.ipam_disabled)
    }

    fn routes(&self) -> Vec<Route> {
        let routes = self.routes.iter().flatten();
        let mut routes: Vec<_> = routes.filter_map(CachedRoute::parse).collect();
        if let Ok(gateway) = self.gateway.parse() {
            let default = Route {
                destination: Ipv4Addr::UNSPECIFIED,
                prefix_len: 0,
                gateway,
            };
            routes.insert(0, default);
        }
        routes
    }
}

impl Network {
    fn parse(&self) -> Option<(Ipv4Addr, u8)> {
        let mask: [u8; 4] = base64(&self.mask)?.try_into().ok()?;
        let prefix_len = u32::from_be_bytes(mask).leading_ones() as u8;
        Some((self.ip.parse().ok()?, prefix_len))
    }
}

impl CachedRoute {
    /// `None` for IPv6.
    fn parse(&self) -> Option<Route> {
        let (destination, prefix_len) = match &self.destination {
            Some(network) => network.parse()?,
            None => (Ipv4Addr::UNSPECIFIED, 0),
        };
        let gateway = self.gateway.as_deref().filter(|text| !text.is_empty());
        Some(Route {
            destination,
            prefix_len,
            gateway: match gateway {
                Some(text) => text.parse().ok()?,
                None => Ipv4Addr::UNSPECIFIED,
            },
        })
    }
}

/// The bytes of padded base64 (RFC 4648, section 4).
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let value = |digit: u8| match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits.bytes() {
        bits = bits << 6 | u32::from(value(digit)?);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    text.len().is_multiple_of(4).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Resolver;
    use super::*;

    const FILE: &str = r#"{"Name":"eth0",
        "IP":{"IP":"10.244.1.5","Mask":"////AA==","Label":"","Flags":0,"Scope":0,"Peer":null,
            "Broadcast":"","PreferedLft":0,"ValidLft":0,"LinkIndex":0},
        "IPv6":{"Label":"","Peer":null}, "MAC":"AgAAAAAB", "AdvertisingIPAddr":"169.254.75.10",
        "Routes":[{"LinkIndex":3,"Dst":null,"Gw":"10.244.1.1"},
            {"Dst":{"IP":"10.96.0.0","Mask":"//AAAA=="},"Gw":"10.244.1.1"}],
        "Mtu":1450, "IPAMDisabled":false, "Gateway":"10.244.1.1", "Subdomain":""}"#;

    fn lease(cache: &VifCache) -> Option<DhcpLease> {
        let common = Common {
            resolver: Resolver::parse(""),
            hostname: None,
            subdomain: None,
            mtu: 1450,
            options: Default::default(),
        };
        cache.lease(Ipv4Addr::new(169, 254, 75, 10), &common)
    }

    #[test]
    fn the_file_of_kubevirt_makes_a_lease() {
        let directory = tempfile::tempdir().expect("a directory");
        let none = VifCache::load(directory.path(), "eth0").expect("no file is no error");
        assert!(none.is_none());
        let file = directory.path().join("vif-cache-eth0.json");
        fs::write(&file, FILE).expect("a writable directory");
        let cache = VifCache::load(directory.path(), "eth0").expect("JSON");
        let mut cache = cache.expect("a file");
        assert_eq!(cache.mac(), Some([2, 0, 0, 0, 0, 1]));
        let found = lease(&cache).expect("an address");
        let gateway = Ipv4Addr::new(10, 244, 1, 1);
        assert_eq!(
            (found.address, found.prefix_len),
            (Ipv4Addr::new(10, 244, 1, 5), 24)
        );
        assert_eq!(found.router, Some(gateway));
        assert_eq!(found.routes, [(Ipv4Addr::new(10, 96, 0, 0), 12, gateway)]);
        cache.ipam_disabled = true;
        assert_eq!(lease(&cache), None);
        fs::write(&file, "{").expect("a writable file");
        VifCache::load(directory.path(), "eth0").expect_err("not JSON");
    }

    #[test]
    fn base64_is_read_strictly() {
        assert_eq!(base64("////AA=="), Some(vec![255, 255, 255, 0]));
        assert_eq!(base64(""), Some(vec![]));
        assert_eq!(base64("AA"), None);
        assert_eq!(base64("A*=="), None);
    }

    /// Whoever may write to the directory holds nobody up.
    #[test]
    fn a_pipe_and_a_long_file_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("vif-cache-eth0.json");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, mode).expect("a pipe");
        VifCache::load(dir.path(), "eth0").expect_err("a pipe");
        fs::remove_file(&file).expect("ours");
        fs::write(&file, " ".repeat(MAX_BYTES as usize + 1)).expect("written");
        let error = VifCache::load(dir.path(), "eth0").expect_err("long");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
