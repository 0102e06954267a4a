//! Interface names, derived from the pod's as KubeVirt does.

use std::net::Ipv4Addr;

/// The kernel's limit for names, bytes (`IFNAMSIZ` less the terminator).
const MAX_NAME: usize = 15;

/// Names of what is made for one pod interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// The pod's interface; while the guest runs, the placeholder.
    pub(super) interface: String,
    /// The pod's NIC while the guest runs.
    pub(super) nic: String,
    pub(super) bridge: String,
    pub(super) tap: String,
    /// The nftables table of the masquerade binding, of either family.
    pub(super) table: String,
}

impl Names {
    /// The names for a pod interface, which is or is not the pod's first. `None` if one would be
    /// too long, or is none.
    pub(super) fn of(interface: &str, primary: bool) -> Option<Self> {
        let base = interface.strip_prefix("pod").unwrap_or(interface);
        let names = Self {
            interface: interface.to_owned(),
            nic: format!("{base}-nic"),
            bridge: format!("k6t-{base}"),
            table: format!("podvisor-{base}"),
            tap: if primary {
                "tap0".to_owned()
            } else {
                format!("tap{}", interface.get(3..).unwrap_or(interface))
            },
        };
        let all = [&names.interface, &names.nic, &names.bridge, &names.tap];
        let fit = !base.is_empty() && all.iter().all(|name| is_valid(name));
        fit.then_some(names)
    }
}

/// Whether the kernel would have an interface of this name (`dev_valid_name`): as a file name it is one
/// component, below its directory.
pub(super) fn is_valid(name: &str) -> bool {
    let forbidden = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
    (1..=MAX_NAME).contains(&name.len())
        && ![".", ".."].contains(&name)
        && !name.contains(forbidden)
}

/// The address that DHCP answers of the NIC number `index` come from; also the bridge's.
pub(super) fn server_address(index: usize) -> Ipv4Addr {
    // KubeVirt appends the index to "169.254.75.1".
    let last = format!("1{index}").parse().unwrap_or(u8::MAX);
    Ipv4Addr::new(169, 254, 75, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_kubevirt() {
        let names = Names::of("eth0", true).expect("short enough");
        assert_eq!(names.nic, "eth0-nic");
        assert_eq!(names.bridge, "k6t-eth0");
        assert_eq!(names.tap, "tap0");
        let names = Names::of("podb1f51a511f1", false).expect("short enough");
        assert_eq!(names.nic, "b1f51a511f1-nic");
        assert_eq!(names.bridge, "k6t-b1f51a511f1");
        assert_eq!(names.tap, "tapb1f51a511f1");
        assert_eq!(
            Names::of("net1", false).map(|names| names.tap),
            Some("tap1".into())
        );
        assert_eq!(
            Names::of("ovn-udn1", true).map(|names| names.tap),
            Some("tap0".into())
        );
        assert_eq!(Names::of("averylongname0", false), None);
        assert_eq!(Names::of("pod", false), None);
    }

    #[test]
    fn server_addresses_count_up() {
        assert_eq!(server_address(0), Ipv4Addr::new(169, 254, 75, 10));
        assert_eq!(server_address(12), Ipv4Addr::new(169, 254, 75, 112));
        assert_eq!(server_address(200), Ipv4Addr::new(169, 254, 75, 255));
    }
}
