//! What fields say together: names that must match, and how much fits on the PCI bus.

use std::cell::RefCell;

use super::Vmi;
use super::interfaces::{Interface, InterfaceBinding};
use super::networks::{Network, NetworkSource};
use super::report::Report;

/// Slots of the PCI bus besides the host bridge.
pub const MAX_PCI_DEVICES: usize = 31;

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
        ("spec.volumes", &volumes),
        ("spec.domain.devices.disks", &disks),
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

    check_subnets(vmi, report);
    check_slots(&devices.interfaces, report);

    let count = disks.len() + interfaces.len() + usize::from(devices.rng);
    if count > MAX_PCI_DEVICES {
        let found = format_args!("{count} PCI devices (disks, interfaces and rng)");
        report.error(
            "spec.domain.devices",
            found,
            format_args!("at most {MAX_PCI_DEVICES}"),
        );
    }
}

/// Subnets of guests are a matter of the masquerade binding, and each guest NIC needs its own: the
/// pod must know through which one an address is reached.
fn check_subnets(vmi: &Vmi, report: &mut Report) {
    let masquerades = |network: &Network| {
        let mut nics = vmi.spec.devices.interfaces.iter();
        nics.any(|nic| nic.name == network.name && nic.binding == InterfaceBinding::Masquerade)
    };
    let mut first: Option<&str> = None;
    for (index, network) in vmi.spec.networks.iter().enumerate() {
        if masquerades(network) {
            if let Some(first) = first {
                report.error(
                    format!("spec.networks[{index}].name"),
                    format_args!("{:?} with the masquerade binding", network.name),
                    format_args!("one masquerade binding: {first:?} has it"),
                );
            }
            first.get_or_insert(&network.name);
            continue;
        }
        let NetworkSource::Pod { ipv4, ipv6 } = &network.source else {
            continue;
        };
        let given = [
            ("vmNetworkCIDR", ipv4.is_some()),
            ("vmIPv6NetworkCIDR", ipv6.is_some()),
        ];
        for (field, _) in given.into_iter().filter(|(_, given)| *given) {
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
