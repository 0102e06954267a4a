//! What fields say together: names that must match, and how much fits on the PCI bus.

use std::cell::RefCell;

use super::Vmi;
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
    let networks: Vec<&str> = vmi.spec.networks.iter().map(String::as_str).collect();

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
