//! `spec.domain.devices.interfaces[]`.

use super::dhcp_options::{self, DhcpOptions};
use super::networks::unique_name;
use super::reader::{Node, Object};

/// A NIC: virtio-net, or one of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name, shared with its network.
    pub name: String,
    /// How it joins its network.
    pub binding: InterfaceBinding,
    /// MAC address of the guest; the pod interface's if unset.
    pub mac: Option<[u8; 6]>,
    /// The guest sees a carrier.
    pub link_up: bool,
    /// The guest does not see the NIC at all.
    pub absent: bool,
    /// Ports that a masquerade or passt binding lets in; all if empty.
    pub ports: Vec<Port>,
    /// What DHCP says besides what the network says.
    pub dhcp_options: DhcpOptions,
    /// Device number on PCI bus 0, 1 to 31; the next free one if unset.
    pub pci_slot: Option<u8>,
    /// Number by which the guest may name it.
    pub acpi_index: Option<u16>,
}

impl Interface {
    /// The NIC of a VMI that names none.
    pub(super) fn default_bridge(name: String) -> Self {
        Self {
            name,
            binding: InterfaceBinding::Bridge,
            mac: None,
            link_up: true,
            absent: false,
            ports: Vec::new(),
            dhcp_options: DhcpOptions::default(),
            pci_slot: None,
            acpi_index: None,
        }
    }
}

/// How a NIC joins its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterfaceBinding {
    /// The guest takes over the pod interface's identity.
    Bridge,
    /// The guest is behind network address translation.
    Masquerade,
    /// The guest is behind a passt process.
    Passt,
    /// The guest has a device of the host to itself.
    Sriov,
}

/// A port that is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Of which protocol.
    pub protocol: Protocol,
    /// Its number, 1 to 65535.
    pub port: u16,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// MAC address of a guest's gateway that is in the pod, as in KubeVirt.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0];

const BINDINGS: &str = "bridge, masquerade, passt or sriov";

/// What is the host's and the network plugin's to say about a device of the host.
const NOT_OF_SRIOV: [&str; 5] = ["model", "macAddress", "acpiIndex", "dhcpOptions", "ports"];

pub(super) fn read(items: &[Node<'_>]) -> Vec<Interface> {
    let mut interfaces: Vec<Interface> = Vec::new();
    for item in items {
        let object = item.object();
        let binding = read_binding(item, &object);
        if binding == Some(InterfaceBinding::Sriov) {
            let names: Vec<_> = interfaces.iter().map(|nic| &*nic.name).collect();
            interfaces.extend(read_sriov(&object, &names));
            continue;
        }
        object.word("model");
        let state = object.word("state");
        let dhcp_options = object.get("dhcpOptions");
        let ports = object.items("ports");
        let index = object.get("acpiIndex");
        let names: Vec<_> = interfaces.iter().map(|nic| &*nic.name).collect();
        let name = unique_name(&object, "the name of a network", &names);
        let interface = Interface {
            name: name.unwrap_or_default(),
            binding: binding.unwrap_or(InterfaceBinding::Bridge),
            mac: object.get("macAddress").and_then(|mac| read_mac(&mac)),
            link_up: state != Some("down"),
            absent: state == Some("absent"),
            ports: ports.iter().filter_map(read_port).collect(),
            dhcp_options: dhcp_options
                .map(|node| dhcp_options::read(&node))
                .unwrap_or_default(),
            pci_slot: object.get("pciAddress").and_then(|node| read_slot(&node)),
            acpi_index: index.as_ref().and_then(read_index),
        };
        let mut others = interfaces.iter();
        let same = |other: &Interface| other.acpi_index == interface.acpi_index;
        if let (Some(node), Some(_)) = (&index, interface.acpi_index)
            && others.any(same)
        {
            node.error("each index once");
        }
        if interface.binding == InterfaceBinding::Passt {
            check_passt(&object, &interface, &ports);
        }
        if interface.binding == InterfaceBinding::Bridge && !interface.ports.is_empty() {
            object.note("ports", "the bridge binding lets all ports through");
        }
        if !interface.name.is_empty() {
            interfaces.push(interface);
        }
    }
    interfaces
}

/// A device of the host: what it is nobody says here.
fn read_sriov(object: &Object<'_>, names: &[&str]) -> Option<Interface> {
    for name in NOT_OF_SRIOV {
        if let Some(node) = object.get(name) {
            node.leave("no effect: it is a device of the host, which the network's plugin sets up");
        }
    }
    if let Some(state) = object.get("state") {
        state.error("nothing with sriov: a device of the host has the carrier that it has");
    }
    let slot = object.get("pciAddress");
    let name = unique_name(object, "the name of a network", names)?;
    Some(Interface {
        binding: InterfaceBinding::Sriov,
        pci_slot: slot.and_then(|node| read_slot(&node)),
        ..Interface::default_bridge(name)
    })
}

fn read_binding(item: &Node<'_>, interface: &Object<'_>) -> Option<InterfaceBinding> {
    let known = [
        ("bridge", InterfaceBinding::Bridge),
        ("masquerade", InterfaceBinding::Masquerade),
        ("passt", InterfaceBinding::Passt),
        ("passtBinding", InterfaceBinding::Passt),
        ("sriov", InterfaceBinding::Sriov),
        // Which it is the plugin's name says.
        ("binding", InterfaceBinding::Passt),
    ];
    let mut found = known
        .into_iter()
        .filter_map(|(name, binding)| Some((name, interface.get(name)?, binding)));
    let Some((kind, node, mut binding)) = found.next() else {
        if !interface.is_explained() {
            interface.missing("bridge", format!("{{}}, or one of {BINDINGS}").as_str());
        }
        return None;
    };
    let plugin = node.object();
    if kind == "binding" {
        binding = read_plugin(&plugin)?;
    }
    if let Some((name, _, _)) = found.next() {
        item.error_found(format_args!("a second binding, {name}"), "one binding");
    }
    Some(binding)
}

/// Of the plugins that clusters register, those of KubeVirt's own are known by their names.
fn read_plugin(binding: &Object<'_>) -> Option<InterfaceBinding> {
    match binding.require("name", "the name of a plugin")?.word()? {
        "passt" | "slirp" => Some(InterfaceBinding::Passt),
        _ => Some(InterfaceBinding::Bridge),
    }
}

/// What passt cannot do.
fn check_passt(object: &Object<'_>, interface: &Interface, ports: &[Node<'_>]) {
    if let Some(node) = object
        .get("dhcpOptions")
        .filter(|_| interface.dhcp_options != DhcpOptions::default())
    {
        node.error("nothing with passt, which answers DHCP by itself");
    }
    // Ports that could not be read have errors of their own.
    if ports.len() == interface.ports.len() {
        for (node, port) in ports.iter().zip(&interface.ports) {
            if port.protocol == Protocol::Sctp {
                node.error_found("SCTP", "TCP or UDP with passt");
            }
        }
    }
}

fn read_port(item: &Node<'_>) -> Option<Port> {
    let port = item.object();
    if let Some(name) = port.get("name") {
        name.string();
    }
    let protocol = port
        .get("protocol")
        .map(|node| match node.word_of_any_case()? {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        });
    let number = port
        .require("port", "a port number")?
        .integer(1..=u64::from(u16::MAX))?;
    Some(Port {
        protocol: protocol.unwrap_or(Some(Protocol::Tcp))?,
        port: number as u16,
    })
}

/// The largest ACPI index that systemd makes a name of.
const MAX_ACPI_INDEX: u64 = 16383;

/// A PCI address `DDDD:BB:DD.F`; there is one bus, and NICs are function 0.
fn read_slot(node: &Node<'_>) -> Option<u8> {
    let slot = node.string()?.strip_prefix("0000:00:").and_then(|rest| {
        let digits = rest.strip_suffix(".0")?;
        let hex = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let slot = u8::from_str_radix(digits, 16).ok().filter(|_| hex)?;
        (1..=31).contains(&slot).then_some(slot)
    });
    if slot.is_none() {
        node.error("an address from 0000:00:01.0 to 0000:00:1f.0: there is one PCI bus");
    }
    slot
}

/// As libvirt takes them; 0 is none, as Go clients write it.
fn read_index(node: &Node<'_>) -> Option<u16> {
    let index = node.integer(0..=MAX_ACPI_INDEX)?;
    u16::try_from(index).ok().filter(|index| *index != 0)
}

fn read_mac(node: &Node<'_>) -> Option<[u8; 6]> {
    let mac = node.string().and_then(parse_mac);
    if mac.is_none() {
        node.error("a unicast MAC address such as 02:00:00:00:00:01");
    }
    mac
}

/// A MAC address that a NIC can have: six octets joined by `:` or `-`, unicast, not zero.
pub(crate) fn parse_mac(text: &str) -> Option<[u8; 6]> {
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
    use serde_json::json;

    use super::super::{Report, Vmi, from_value};
    use super::{InterfaceBinding, parse_mac};

    /// A VMI with one NIC whose binding is a plugin.
    fn with_plugin(name: &str) -> Result<(Vmi, Report), Report> {
        let vmi = json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"name": "plugin"},
            "spec": {
                "domain": {
                    "memory": {"guest": "256Mi"},
                    "devices": {"interfaces": [{"name": "net", "binding": {"name": name}}]},
                },
                "networks": [{"name": "net", "pod": {}}],
            },
        });
        from_value(String::new(), &vmi, false)
    }

    #[test]
    fn plugins_of_kubevirts_own_are_known() {
        for (name, binding, noted) in [
            ("passt", InterfaceBinding::Passt, false),
            ("slirp", InterfaceBinding::Passt, true),
            ("l2bridge", InterfaceBinding::Bridge, true),
        ] {
            let (vmi, report) = with_plugin(name).expect(name);
            assert_eq!(vmi.spec.devices.interfaces[0].binding, binding, "{name}");
            let mut notes = report.notes.iter();
            let is_noted = notes.any(|note| note.path.ends_with("binding.name"));
            assert_eq!(is_noted, noted, "{report:?}");
        }
        let report = with_plugin("mine").expect_err("not known");
        assert_eq!(report.errors[0].accepted, "passt, l2bridge, macvtap, slirp");
    }

    #[test]
    fn a_nic_of_the_host_has_what_the_host_gives_it() {
        let read = |nic: serde_json::Value, network: serde_json::Value| {
            let vmi = json!({
                "apiVersion": "kubevirt.io/v1",
                "kind": "VirtualMachineInstance",
                "metadata": {"name": "sriov"},
                "spec": {
                    "domain": {"memory": {"guest": "256Mi"}, "devices": {"interfaces": [nic]}},
                    "networks": [network],
                },
            });
            from_value(String::new(), &vmi, false)
        };
        let multus = json!({"name": "fast", "multus": {"networkName": "fast"}});
        let nic = json!({
            "name": "fast", "sriov": {}, "pciAddress": "0000:00:05.0",
            "model": "e1000", "macAddress": "02:00:00:00:00:01", "bootOrder": 1,
        });
        let (vmi, report) = read(nic, multus.clone()).expect("it can be honoured");
        let nic = &vmi.spec.devices.interfaces[0];
        assert_eq!(
            (nic.binding, nic.pci_slot),
            (InterfaceBinding::Sriov, Some(5))
        );
        assert_eq!(nic.mac, None);
        let notes = report.notes.iter().map(|note| &*note.path);
        let mut noted: Vec<_> = notes.filter(|path| path.contains("interfaces")).collect();
        noted.sort_unstable();
        let expected = ["bootOrder", "macAddress", "model"];
        let expected = expected.map(|name| format!("spec.domain.devices.interfaces[0].{name}"));
        assert_eq!(noted, expected);

        let down = json!({"name": "fast", "sriov": {}, "state": "down"});
        let report = read(down, multus).expect_err("no such switch");
        assert_eq!(
            report.errors[0].path,
            "spec.domain.devices.interfaces[0].state"
        );
        let of_pod = read(
            json!({"name": "fast", "sriov": {}}),
            json!({"name": "fast", "pod": {}}),
        );
        let report = of_pod.expect_err("the pod network is no device");
        assert_eq!(
            report.errors[0].path,
            "spec.domain.devices.interfaces[0].sriov"
        );
    }

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
