//! Devices of the host, and what says which they are.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use vmm::plan::HostDevicePlan;

use super::slots::Slots;
use super::{PlanOptions, said_of};
use crate::vmi::{HostDevice, HostDeviceKind, InterfaceBinding, Report, Spec, Vmi};

/// A device of the host and where its address is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostDeviceSource {
    /// Its name in the VMI.
    pub name: String,
    /// Name of its device in the machine.
    pub device: String,
    /// Where in the VMI it is.
    pub list: HostDeviceList,
    /// Where its address is.
    pub from: HostDeviceOrigin,
}

impl HostDeviceSource {
    /// The name by which virt-handler knows it.
    pub(crate) fn alias(&self) -> String {
        let prefix = match self.list {
            HostDeviceList::HostDevices => "hostdevice",
            HostDeviceList::Gpus => "gpu",
            HostDeviceList::Interfaces => "sriov",
        };
        format!("{prefix}-{}", self.name)
    }
}

/// Lists of a VMI with devices of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum HostDeviceList {
    HostDevices,
    Gpus,
    Interfaces,
}

impl fmt::Display for HostDeviceList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostDevices => "spec.domain.devices.hostDevices",
            Self::Gpus => "spec.domain.devices.gpus",
            Self::Interfaces => "spec.domain.devices.interfaces",
        })
    }
}

/// What says which device it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HostDeviceOrigin {
    /// The command line.
    Address(HostAddress),
    /// The device plugin of this resource, by the environment.
    Resource(String),
    /// The plugin of this network, by a file of the pod.
    Network(String),
}

/// A device of the host, as sysfs names it: nothing else gets through, for it becomes a part of paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostAddress {
    /// A PCI device: `DDDD:BB:DD.F`.
    Pci(String),
    /// A mediated device: its UUID.
    Mediated(String),
}

impl HostAddress {
    /// As it is in sysfs.
    pub fn name(&self) -> &str {
        match self {
            Self::Pci(name) | Self::Mediated(name) => name,
        }
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for HostAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What is neither form of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither a PCI address such as 0000:3b:00.0 nor the UUID of a mediated device")]
pub struct ParseHostAddressError;

impl FromStr for HostAddress {
    type Err = ParseHostAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if has_form(text, "xxxx:xx:xx.o") {
            return Ok(Self::Pci(text.to_ascii_lowercase()));
        }
        if has_form(text, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx") {
            return Ok(Self::Mediated(text.to_ascii_lowercase()));
        }
        Err(ParseHostAddressError)
    }
}

/// `x` in the form stands for a hexadecimal digit, `o` for an octal one, anything else for itself.
fn has_form(text: &str, form: &str) -> bool {
    let fits = |(c, form): (u8, u8)| match form {
        b'x' => c.is_ascii_hexdigit(),
        b'o' => (b'0'..=b'7').contains(&c),
        form => c == form,
    };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(fits)
}

/// Whether there are any.
pub(super) fn are_some(spec: &Spec) -> bool {
    let mut nics = spec.devices.interfaces.iter();
    !spec.devices.host_devices.is_empty()
        || nics.any(|nic| nic.binding == InterfaceBinding::Sriov && !nic.absent)
}

/// The devices of the host in the order of the VMI's lists, and where each comes from.
pub(super) fn host_devices(
    vmi: &Vmi,
    options: &PlanOptions,
    slots: &mut Slots,
) -> (Vec<HostDevicePlan>, Vec<HostDeviceSource>) {
    let devices = &vmi.spec.devices;
    let nics = devices.interfaces.iter();
    let nics = nics.filter(|nic| nic.binding == InterfaceBinding::Sriov && !nic.absent);
    let nics = nics.map(|nic| {
        let from = HostDeviceOrigin::Network(nic.name.clone());
        (&nic.name, HostDeviceList::Interfaces, nic.pci_slot, from)
    });
    let others = devices.host_devices.iter().map(|device: &HostDevice| {
        let list = match device.kind {
            HostDeviceKind::Any => HostDeviceList::HostDevices,
            HostDeviceKind::Gpu => HostDeviceList::Gpus,
        };
        let from = HostDeviceOrigin::Resource(device.resource.clone());
        (&device.name, list, None, from)
    });
    others
        .chain(nics)
        .map(|(name, list, slot, from)| {
            let device = slots.name(name, "host");
            let plan = HostDevicePlan {
                name: device.clone(),
                pci_slot: slots.slot(slot),
            };
            let said = said_of(name, &options.host_devices).cloned();
            let source = HostDeviceSource {
                name: name.clone(),
                device,
                list,
                from: said.map_or(from, HostDeviceOrigin::Address),
            };
            (plan, source)
        })
        .unzip()
}

/// What the command line says is of devices that are there, and gives each to one of them.
pub(super) fn check_options(
    sources: &[HostDeviceSource],
    options: &PlanOptions,
    report: &mut Report,
) {
    for (index, (name, address)) in options.host_devices.iter().enumerate() {
        let mut before = options.host_devices[..index].iter();
        let mut named = sources.iter().filter(|source| source.name == *name);
        let accepted = match (named.next(), named.next()) {
            (None, _) if sources.is_empty() => {
                "a VMI with hostDevices, gpus or interfaces with sriov".to_owned()
            }
            (None, _) => {
                let known: Vec<_> = sources.iter().map(|source| &*source.name).collect();
                format!("one of {}", known.join(", "))
            }
            (Some(_), Some(_)) => "a name that one device of the host has".to_owned(),
            _ if before.any(|(other, of)| other == name || of == address) => {
                "each name and each device once".to_owned()
            }
            _ => continue,
        };
        report.error("--host-device", format_args!("{name}={address}"), accepted);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::{LaunchPlan, plan};

    fn planned(devices: &Value, said: &[(&str, &str)]) -> Result<LaunchPlan, Report> {
        let vmi = json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm"},
            "spec": {
                "domain": {
                    "memory": {"guest": "64Mi"},
                    "devices": devices,
                    "firmware": {"kernelBoot": {"container": {"image": "x", "kernelPath": "/vmlinux"}}},
                },
                "networks": [{"name": "fast", "multus": {"networkName": "fast"}}],
            },
        });
        let (vmi, _) = crate::vmi::from_cluster(&vmi).expect("a VMI");
        let said = said.iter();
        let said = said.map(|(name, address)| ((*name).to_owned(), address.parse().expect("one")));
        let options = PlanOptions {
            host_devices: said.collect(),
            ..PlanOptions::default()
        };
        plan(&vmi, &options)
    }

    fn some() -> Value {
        json!({
            "autoattachMemBalloon": true,
            "rng": {},
            "gpus": [{"name": "gpu1", "deviceName": "nvidia.com/T4"}],
            "hostDevices": [{"name": "rng", "deviceName": "intel.com/qat"}],
            "interfaces": [{"name": "fast", "sriov": {}, "pciAddress": "0000:00:02.0"}],
        })
    }

    #[test]
    fn they_come_last_and_leave_others_their_slots() {
        let plan = planned(&some(), &[("gpu1", "0000:3B:00.0")]).expect("it can be honoured");
        let slots = plan.machine.host_devices.iter();
        let slots: Vec<_> = slots
            .map(|device| (&*device.name, device.pci_slot))
            .collect();
        assert_eq!(slots, [("host-rng", 3), ("gpu1", 4), ("fast", 2)]);
        // Not one page may go that a device could write to.
        let others = plan.machine.devices.iter();
        let others: Vec<_> = others
            .map(|device| (&*device.name, device.pci_slot))
            .collect();
        assert_eq!(others, [("rng", 1)]);
        assert!(plan.nics.is_empty());
        let sources = serde_json::to_value(&plan.host_devices).expect("JSON");
        let expected = json!([
            {"name": "rng", "device": "host-rng", "list": "hostDevices", "from": {"resource": "intel.com/qat"}},
            {"name": "gpu1", "device": "gpu1", "list": "gpus", "from": {"address": "0000:3b:00.0"}},
            {"name": "fast", "device": "fast", "list": "interfaces", "from": {"network": "fast"}},
        ]);
        assert_eq!(sources, expected);
        let aliases: Vec<_> = plan
            .host_devices
            .iter()
            .map(HostDeviceSource::alias)
            .collect();
        assert_eq!(aliases, ["hostdevice-rng", "gpu-gpu1", "sriov-fast"]);
    }

    #[test]
    fn options_for_none_or_for_two_are_refused() {
        let uuid = "9a6b4b29-1f1d-4a8e-9d2c-0123456789ab";
        planned(&some(), &[("fast", "0000:00:03.0"), ("gpu1", uuid)]).expect("two of them");
        for said in [
            &[("other", "0000:00:03.0")][..],
            &[("gpu1", "0000:00:03.0"), ("gpu1", "0000:00:04.0")],
            &[("gpu1", "0000:00:03.0"), ("fast", "0000:00:03.0")],
        ] {
            let report = planned(&some(), said).expect_err("not so");
            assert_eq!(report.errors.len(), 1, "{report:?}");
            assert_eq!(report.errors[0].path, "--host-device");
        }
        let none = json!({"rng": {}, "interfaces": [{"name": "fast", "bridge": {}}]});
        let report = planned(&none, &[("gpu1", uuid)]).expect_err("no such device");
        assert!(report.errors[0].accepted.contains("sriov"), "{report:?}");
    }

    #[test]
    fn only_whole_addresses_are_some() {
        for good in ["0000:00:03.0", "ffFF:ff:1f.7"] {
            assert!(matches!(good.parse(), Ok(HostAddress::Pci(_))), "{good}");
        }
        let uuid = "9A6b4b29-1f1d-4a8e-9d2c-0123456789ab".parse();
        let lower = "9a6b4b29-1f1d-4a8e-9d2c-0123456789ab".to_owned();
        assert_eq!(uuid, Ok(HostAddress::Mediated(lower)));
        for bad in [
            "",
            "00:03.0",
            "0000:00:03",
            "0000:00:03.8",
            "0000:00:03.0 ",
            "0000:00:03.0/",
            "../../../etc",
            "0000:00:+3.0",
            "0000:00:0é.0",
            "9a6b4b291f1d4a8e9d2c0123456789ab",
            "9a6b4b29-1f1d-4a8e-9d2c-0123456789a/",
        ] {
            assert_eq!(
                bad.parse::<HostAddress>(),
                Err(ParseHostAddressError),
                "{bad}"
            );
        }
    }
}
