//! What fields say together: names that must match, and how much fits on the PCI bus.

use std::cell::RefCell;

use super::Vmi;
use super::interfaces::{GATEWAY_MAC, Interface, InterfaceBinding};
use super::networks::{Network, NetworkSource};
use super::report::Report;

/// Slots of the PCI bus besides the host bridge.
pub const MAX_PCI_DEVICES: usize = vmm::layout::MAX_PCI_DEVICES;

/// Checks a VMI whose fields are good one by one.
pub(super) fn check(vmi: &Vmi, report: &RefCell<Report>) {
    let report = &mut report.borrow_mut();
    let devices = &vmi.spec.devices;
    let disks: Vec<&str> = devices
        .disks
        .iter()
        .map(|disk| disk.name.as_str())
        .collect();
    let volumes: Vec<&str> = vmi
        .spec
        .volumes
        .iter()
        .map(|volume| volume.name.as_str())
        .collect();
    let interfaces: Vec<&str> = devices
        .interfaces
        .iter()
        .map(|nic| nic.name.as_str())
        .collect();
    let networks: Vec<&str> = vmi
        .spec
        .networks
        .iter()
        .map(|network| network.name.as_str())
        .collect();

    match_names(
        report,
        ("spec.domain.devices.disks", &disks),
        ("spec.volumes", &volumes),
    );
    match_names(
        report,
        ("spec.domain.devices.interfaces", &interfaces),
        ("spec.networks", &networks),
    );
    match_names(
        report,
        ("spec.networks", &networks),
        ("spec.domain.devices.interfaces", &interfaces),
    );

    check_masquerade(&devices.interfaces, report);
    check_addresses(&devices.interfaces, report);
    check_subnets(vmi, report);
    check_slots(&devices.interfaces, report);
    if devices.balloon && vmi.spec.memory.hugepage_size.is_some() {
        report.note(
            "spec.domain.devices.autoattachMemBalloon",
            "no balloon: huge pages are the guest's for good",
        );
    }

    let count =
        disks.len() + interfaces.len() + usize::from(devices.rng) + usize::from(devices.balloon);
    if count > MAX_PCI_DEVICES {
        let found = format_args!("{count} PCI devices (disks, interfaces, rng and balloon)");
        report.error(
            "spec.domain.devices",
            found,
            format_args!("at most {MAX_PCI_DEVICES}"),
        );
    }
}

/// KubeVirt has the masquerade binding on the pod network alone. Here any network may have it, but one
/// only: the pod must know through which NIC a subnet is reached.
fn check_masquerade(interfaces: &[Interface], report: &mut Report) {
    let all = interfaces.iter().enumerate();
    let mut all = all.filter(|(_, nic)| nic.binding == InterfaceBinding::Masquerade);
    let Some((_, first)) = all.next() else {
        return;
    };
    for (index, _) in all {
        report.error(
            format!("spec.domain.devices.interfaces[{index}].masquerade"),
            "a second masquerade binding",
            format_args!("one, as in KubeVirt: {:?} has it", first.name),
        );
    }
}

/// The guest's gateway has this address if it is in the pod.
fn check_addresses(interfaces: &[Interface], report: &mut Report) {
    for (index, nic) in interfaces.iter().enumerate() {
        if nic.binding != InterfaceBinding::Bridge && nic.mac == Some(GATEWAY_MAC) {
            report.error(
                format!("spec.domain.devices.interfaces[{index}].macAddress"),
                "02:00:00:00:00:00",
                "another address: the guest's gateway has this one",
            );
        }
    }
}

/// Subnets of guests are a matter of the masquerade binding.
fn check_subnets(vmi: &Vmi, report: &mut Report) {
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
                format!("spec.networks[{index}].pod.{field}"),
                "a subnet",
                "nothing, only the masquerade binding gives the guest a subnet of its own",
            );
        }
    }
}

/// No PCI slot is asked for twice.
fn check_slots(interfaces: &[Interface], report: &mut Report) {
    for (index, nic) in interfaces.iter().enumerate() {
        let same = |other: &&Interface| other.pci_slot == nic.pci_slot;
        let other = interfaces[..index].iter().find(same);
        if let (Some(slot), Some(other)) = (nic.pci_slot, other) {
            report.error(
                format!("spec.domain.devices.interfaces[{index}].pciAddress"),
                format_args!("0000:00:{slot:02x}.0"),
                format_args!("a free address: {:?} has it", other.name),
            );
        }
    }
}

/// Every name of the first list must be in the second.
fn match_names(
    report: &mut Report,
    (path, names): (&str, &[&str]),
    (other, others): (&str, &[&str]),
) {
    for (index, name) in names.iter().enumerate() {
        if !others.contains(name) {
            let accepted = match others {
                [] => format!("a name in {other}, which is empty"),
                others => format!("a name in {other}: {}", others.join(", ")),
            };
            report.error(
                format!("{path}[{index}].name"),
                format_args!("{name:?}"),
                accepted,
            );
        }
    }
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
