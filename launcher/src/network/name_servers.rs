//! Name servers of a guest behind passt. passt tells it this host's, but for those at the host's loopback, which the guest cannot
//! reach: where there are no others, as on most computers with systemd-resolved, the guest is told those that the
//! host's own server asks.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::lease::Resolver;

/// Where systemd-resolved and NetworkManager write whom they ask.
const UPSTREAM: [&str; 2] = [
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
];

/// Servers to tell the guest in place of those of the resolver configuration; none if that will do.
pub(super) fn in_place_of(resolv_conf: &Path) -> Vec<IpAddr> {
    let of_host = servers(resolv_conf);
    if of_host.is_empty() || !of_host.iter().all(IpAddr::is_loopback) {
        return Vec::new();
    }
    let servers = upstream(&UPSTREAM.map(Path::new));
    if servers.is_empty() {
        tracing::warn!(
            "no names are resolved in the guest: all name servers of {} are at this host's loopback, where passt lets no guest",
            resolv_conf.display()
        );
    }
    servers
}

/// Those of the first file that has any that a guest can reach.
fn upstream(files: &[&Path]) -> Vec<IpAddr> {
    let reachable = |path: &&Path| {
        let mut found = servers(path);
        found.retain(|server| !server.is_loopback());
        (!found.is_empty()).then_some(found)
    };
    files.iter().find_map(reachable).unwrap_or_default()
}

fn servers(resolv_conf: &Path) -> Vec<IpAddr> {
    let text = fs::read_to_string(resolv_conf).unwrap_or_default();
    Resolver::parse(&text).servers().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_server_is_replaced_by_those_that_it_asks() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).expect("written");
            path
        };
        let stub = file("stub", "nameserver 127.0.0.53\n");
        let real = file(
            "real",
            "nameserver 127.0.0.1\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n",
        );
        let missing = directory.path().join("missing");
        let found = upstream(&[&missing, &stub, &real]);
        let expected: [IpAddr; 2] =
            ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().expect("an address"));
        assert_eq!(found, expected);
        assert!(upstream(&[&stub]).is_empty());
        // One that the guest reaches will do, and so will none.
        assert!(in_place_of(&real).is_empty());
        assert!(in_place_of(&missing).is_empty());
    }
}
