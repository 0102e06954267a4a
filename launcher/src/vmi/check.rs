//! What fields say together: names that must match, and how much fits on the PCI bus.

use serde_json::Value;

use super::Vmi;
use super::interfaces::{GATEWAY_MAC, Interface, InterfaceBinding};
use super::networks::{Network, NetworkSource};
use super::report::Report;
use super::words::{describe, is_unset};

/// Names of a list that an error shows.
const MAX_NAMES: usize = 32;

/// Slots of the PCI bus besides the host bridge.
pub const MAX_PCI_DEVICES: usize = vmm::layout::MAX_PCI_DEVICES;

/// Checks a VMI whose fields are good one by one. Its spec is at `path`.
pub(super) fn check(vmi: &Vmi, path: &str, report: &mut Report) {
    let devices = &vmi.spec.devices;
    check_masquerade(&devices.interfaces, path, report);
    check_addresses(&devices.interfaces, path, report);
    check_subnets(vmi, path, report);
    check_slots(&devices.interfaces, path, report);
    check_sriov(vmi, path, report);

    let of_host = devices.host_devices.len();
    let count = devices.disks.len() + devices.interfaces.len() + usize::from(devices.rng) + of_host;
    if count > MAX_PCI_DEVICES {
        let found = match of_host {
            0 => format!("{count} PCI devices (disks, interfaces and rng)"),
            _ => format!("{count} PCI devices (disks, interfaces, rng, hostDevices and gpus)"),
        };
        report.error(
            format!("{path}.domain.devices"),
            found,
            format_args!("at most {MAX_PCI_DEVICES}"),
        );
    }
}

/// Checks names that must be in two lists of a spec, whatever else is wrong with it. A CD-ROM drive needs
/// no volume, and a volume needs no disk: KubeVirt adds one.
pub(super) fn match_names(spec: &Value, path: &str, report: &mut Report) {
    const DISKS: &str = "domain.devices.disks";
    const FILESYSTEMS: &str = "domain.devices.filesystems";
    const INTERFACES: &str = "domain.devices.interfaces";
    let needs_volume = |disk: &Value| disk.get("cdrom").is_none_or(is_unset);
    let any = |_: &Value| true;
    match_lists(report, spec, path, (DISKS, &needs_volume), "volumes");
    match_lists(report, spec, path, (FILESYSTEMS, &any), "volumes");
    match_lists(report, spec, path, (INTERFACES, &any), "networks");
    match_lists(report, spec, path, ("networks", &any), INTERFACES);
}

/// KubeVirt has the masquerade binding on the pod network alone. Here any network may have it, but one
/// only: the pod must know through which NIC a subnet is reached.
fn check_masquerade(interfaces: &[Interface], path: &str, report: &mut Report) {
    let all = interfaces.iter().enumerate();
    let mut all = all.filter(|(_, nic)| nic.binding == InterfaceBinding::Masquerade);
    let Some((_, first)) = all.next() else {
        return;
    };
    for (index, _) in all {
        report.error(
            format!("{path}.domain.devices.interfaces[{index}].masquerade"),
            "a second masquerade binding",
            format_args!("one, as in KubeVirt: {:?} has it", first.name),
        );
    }
}

/// The guest's gateway has this address if it is in the pod.
fn check_addresses(interfaces: &[Interface], path: &str, report: &mut Report) {
    for (index, nic) in interfaces.iter().enumerate() {
        // One of the host has none here.
        if nic.binding != InterfaceBinding::Bridge && nic.mac == Some(GATEWAY_MAC) {
            report.error(
                format!("{path}.domain.devices.interfaces[{index}].macAddress"),
                "02:00:00:00:00:00",
                "another address: the guest's gateway has this one",
            );
        }
    }
}

/// Subnets of guests are a matter of the masquerade binding.
fn check_subnets(vmi: &Vmi, path: &str, report: &mut Report) {
    let masquerades = |network: &Network| {
        let mut nics = vmi.spec.devices.interfaces.iter();
        nics.any(|nic| nic.name == network.name && nic.binding == InterfaceBinding::Masquerade)
    };
    for (index, network) in vmi.spec.networks.iter().enumerate() {
        let NetworkSource::Pod { ipv4, ipv6 } = &network.source else {
            continue;
        };
        let given = [
            ("vmNetworkCIDR", ipv4.is_some()),
            ("vmIPv6NetworkCIDR", ipv6.is_some()),
        ];
        let useless = |(_, given): &(&str, bool)| *given && !masquerades(network);
        for (field, _) in given.into_iter().filter(useless) {
            report.error(
                format!("{path}.networks[{index}].pod.{field}"),
                "a subnet",
                "nothing, only the masquerade binding gives the guest a subnet of its own",
            );
        }
    }
}

/// The pod network is no device of the host's.
fn check_sriov(vmi: &Vmi, path: &str, report: &mut Report) {
    let interfaces = vmi.spec.devices.interfaces.iter().enumerate();
    for (index, nic) in interfaces.filter(|(_, nic)| nic.binding == InterfaceBinding::Sriov) {
        let mut networks = vmi.spec.networks.iter();
        let network = networks.find(|network| network.name == nic.name);
        let is_pod = |network: &Network| matches!(network.source, NetworkSource::Pod { .. });
        if network.is_some_and(is_pod) {
            report.error(
                format!("{path}.domain.devices.interfaces[{index}].sriov"),
                "the pod network",
                "a multus network, whose plugin gives the pod a device of the host",
            );
        }
    }
}

/// No PCI slot is asked for twice.
fn check_slots(interfaces: &[Interface], path: &str, report: &mut Report) {
    for (index, nic) in interfaces.iter().enumerate() {
        let same = |other: &&Interface| other.pci_slot == nic.pci_slot;
        let other = interfaces[..index].iter().find(same);
        if let (Some(slot), Some(other)) = (nic.pci_slot, other) {
            report.error(
                format!("{path}.domain.devices.interfaces[{index}].pciAddress"),
                format_args!("0000:00:{slot:02x}.0"),
                format_args!("a free address: {:?} has it", other.name),
            );
        }
    }
}

/// Every name of the first list, of elements that need it, must be in the second.
fn match_lists(
    report: &mut Report,
    spec: &Value,
    path: &str,
    (list, needed): (&str, &dyn Fn(&Value) -> bool),
    other: &str,
) {
    let others: Vec<&str> = elements(spec, other).filter_map(name).collect();
    for (index, element) in elements(spec, list).enumerate() {
        let at = format!("{path}.{list}[{index}].name");
        let Some(name) = name(element).filter(|_| needed(element)) else {
            continue;
        };
        if others.contains(&name) || report.is_full() || report.has_error_at(&at) {
            continue;
        }
        let other = format!("{path}.{other}");
        let accepted = match others.as_slice() {
            [] => format!("a name in {other}, which is empty"),
            // Names that the other list should not have are not to be shown either.
            others => format!("a name in {other}: {}", quoted(others)),
        };
        report.error(at, describe(&Value::from(name)), accepted);
    }
}

fn elements<'a>(spec: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    let list = list
        .split('.')
        .try_fold(spec, |value, name| value.get(name));
    list.and_then(Value::as_array).into_iter().flatten()
}

fn name(element: &Value) -> Option<&str> {
    element.get("name")?.as_str()
}

fn quoted(names: &[&str]) -> String {
    let names = names
        .iter()
        .take(MAX_NAMES)
        .map(|name| describe(&Value::from(*name)));
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn a_second_masquerade_binding_is_refused_by_name() {
        let document = json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"name": "two"},
            "spec": {
                "domain": {
                    "memory": {"guest": "256Mi"},
                    "devices": {"interfaces": [
                        {"name": "default", "masquerade": {}},
                        {"name": "red", "masquerade": {}, "macAddress": "02:00:00:00:00:00"},
                    ]},
                },
                "networks": [
                    {"name": "default", "pod": {}},
                    {"name": "red", "multus": {"networkName": "red"}},
                ],
            },
        });
        let report =
            super::super::from_value(String::new(), &document, false).expect_err("two bindings");
        let errors: Vec<_> = report.errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "spec.domain.devices.interfaces[1].masquerade: found a second masquerade binding; \
                 accepted: one, as in KubeVirt: \"default\" has it",
                "spec.domain.devices.interfaces[1].macAddress: found 02:00:00:00:00:00; \
                 accepted: another address: the guest's gateway has this one",
            ]
        );
    }
}
