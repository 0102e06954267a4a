//! `spec.networks[]` and `spec.domain.devices.interfaces[]`.

use super::reader::{Fields, Node, Object};

/// A virtio-net NIC with the bridge binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name, shared with its network.
    pub name: String,
    /// MAC address of the guest; the pod interface's if unset.
    pub mac: Option<[u8; 6]>,
    /// The guest sees a carrier.
    pub link_up: bool,
}

const NETWORK: Fields = Fields {
    honoured: &["name", "pod"],
    accepted: &[],
    refused: &[
        ("multus", "only the pod network is supported"),
        ("resourceClaim", "only the pod network is supported"),
    ],
};

const POD: Fields = Fields {
    honoured: &[],
    accepted: &[],
    refused: &[
        (
            "vmIPv6NetworkCIDR",
            "the bridge binding gives the guest the pod's addresses",
        ),
        (
            "vmNetworkCIDR",
            "the bridge binding gives the guest the pod's addresses",
        ),
    ],
};

const ONLY_BRIDGE: &str = "only `bridge: {}` is supported";

const INTERFACE: Fields = Fields {
    honoured: &["bridge", "macAddress", "model", "name", "state"],
    accepted: &[
        ("bootOrder", "the kernel is booted directly"),
        ("ports", "the bridge binding lets all ports through"),
        ("portRanges", "the bridge binding lets all ports through"),
        ("tag", "there is no device metadata for it"),
    ],
    refused: &[
        ("acpiIndex", "ACPI indices of NICs are not supported"),
        ("binding", ONLY_BRIDGE),
        ("dhcpOptions", "DHCP options come from the pod's network"),
        ("macvtap", ONLY_BRIDGE),
        ("masquerade", ONLY_BRIDGE),
        ("passt", ONLY_BRIDGE),
        ("passtBinding", ONLY_BRIDGE),
        (
            "pciAddress",
            "PCI addresses follow the order of the devices",
        ),
        ("slirp", ONLY_BRIDGE),
        ("sriov", ONLY_BRIDGE),
    ],
};

const BRIDGE: Fields = Fields {
    honoured: &[],
    accepted: &[],
    refused: &[],
};

/// Reads the names of the networks, each the pod network.
pub(super) fn read_networks(items: &[Node<'_>]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut has_pod = false;
    for item in items {
        let network = item.object(&NETWORK);
        match network.get("pod") {
            Some(pod) => {
                pod.object(&POD);
                if has_pod {
                    item.error_found("a second pod network", "one network: the pod has one NIC");
                }
                has_pod = true;
            }
            None if network.is_explained() => {}
            None => network.missing("pod", "{}"),
        }
        if let Some(name) = unique_name(&network, "the name of an interface", &names) {
            names.push(name);
        }
    }
    names
}

pub(super) fn read_interfaces(items: &[Node<'_>]) -> Vec<Interface> {
    let mut interfaces: Vec<Interface> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for item in items {
        let interface = item.object(&INTERFACE);
        match interface.get("bridge") {
            Some(bridge) => drop(bridge.object(&BRIDGE)),
            None if interface.is_explained() => {}
            None => interface.missing("bridge", "{}"),
        }
        if let Some(model) = interface.get("model") {
            model.word(&["virtio"]);
        }
        let mac = interface.get("macAddress").and_then(|mac| read_mac(&mac));
        let state = interface
            .get("state")
            .and_then(|state| state.word(&["up", "down"]));
        if let Some(name) = unique_name(&interface, "the name of a network", &names) {
            names.push(name.clone());
            interfaces.push(Interface {
                name,
                mac,
                link_up: state != Some("down"),
            });
        }
    }
    interfaces
}

fn unique_name(object: &Object<'_>, accepted: &str, names: &[String]) -> Option<String> {
    let node = object.require("name", accepted)?;
    let name = node.label()?;
    if names.iter().any(|other| other == name) {
        node.error("each name once");
        return None;
    }
    Some(name.to_owned())
}

fn read_mac(node: &Node<'_>) -> Option<[u8; 6]> {
    let mac = node.string().and_then(parse_mac);
    if mac.is_none() {
        node.error("a unicast MAC address such as 02:00:00:00:00:01");
    }
    mac
}

/// A MAC address that a NIC can have: six octets joined by `:` or `-`, unicast, not zero.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut mac = [0; 6];
    let mut octets = text.split(separator);
    for byte in &mut mac {
        let octet = octets
            .next()
            .filter(|octet| octet.len() == 2 && !octet.starts_with('+'))?;
        *byte = u8::from_str_radix(octet, 16).ok()?;
    }
    (octets.next().is_none() && mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::parse_mac;

    #[test]
    fn macs() {
        assert_eq!(parse_mac("02:00:00:00:00:fF"), Some([2, 0, 0, 0, 0, 255]));
        assert_eq!(parse_mac("02-00-00-00-00-01"), Some([2, 0, 0, 0, 0, 1]));
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02:00:00:00:00:0g",
            "02:00:00:00:00:+1",
            "2:0:0:0:0:1",
            "00:00:00:00:00:00",
            "03:00:00:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "02:00-00:00:00:01",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
