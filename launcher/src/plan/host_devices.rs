//! Devices of the host, and what says which they are.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use vmm::plan::HostDevicePlan;

use super::slots::Slots;
use super::{PlanOptions, said_of};
use crate::vmi::{
    ClaimRequest, HostAddress, HostDevice, HostDeviceFrom, HostDeviceKind, InterfaceBinding,
    Report, Spec, Vmi,
};

/// Where the pod has what drivers of resource claims tell it.
const CLAIMS: &str = "/var/run/kubernetes.io/dra-device-attributes";

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
    /// The command line, or the VMI's status.
    Address(HostAddress),
    /// The device plugin of this resource, by the environment.
    Resource(String),
    /// The plugin of this network, by a file of the pod.
    Network(String),
    /// The driver of a resource claim, by a file of the pod.
    Claim {
        /// Name of the claim in the VMI.
        name: String,
        /// The request of it.
        request: String,
        /// Where that file is.
        directory: PathBuf,
    },
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
        let from = match &device.from {
            HostDeviceFrom::Resource(resource) => HostDeviceOrigin::Resource(resource.clone()),
            HostDeviceFrom::Claim(claim) => of_claim(&vmi.spec, claim),
        };
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

/// What the status says, or the place where kubelet has a driver's files, as KubeVirt knows it.
fn of_claim(spec: &Spec, claim: &ClaimRequest) -> HostDeviceOrigin {
    if let Some(address) = &claim.address {
        return HostDeviceOrigin::Address(address.clone());
    }
    let mut claims = spec.resource_claims.iter();
    let named = claims.find(|known| known.name == claim.claim);
    let (kind, object) = match named.and_then(|known| known.object.as_ref()) {
        Some(object) => ("resourceclaims", object),
        None => ("resourceclaimtemplates", &claim.claim),
    };
    let directory = [CLAIMS, kind, object, &claim.request];
    HostDeviceOrigin::Claim {
        name: claim.claim.clone(),
        request: claim.request.clone(),
        directory: directory.iter().collect(),
    }
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
    if report.errors.is_empty() {
        check_once(sources, report);
    }
}

/// The status may say what is on the command line, too, or the same twice.
fn check_once(sources: &[HostDeviceSource], report: &mut Report) {
    for (index, source) in sources.iter().enumerate() {
        let HostDeviceOrigin::Address(address) = &source.from else {
            continue;
        };
        let mut before = sources[..index].iter();
        if let Some(other) = before.find(|before| before.from == source.from) {
            let found = format_args!("{:?} with {address}, as {:?}", source.name, other.name);
            report.error(source.list.to_string(), found, "each device once");
        }
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
    fn what_the_status_says_twice_is_refused() {
        let got = |name: &str, address: &str| json!({"name": name, "deviceResourceClaimStatus": {"attributes": {"pciAddress": address}}});
        let vmi = |one: &str, two: &str| {
            json!({
                "apiVersion": "kubevirt.io/v1",
                "kind": "VirtualMachineInstance",
                "metadata": {"name": "vm"},
                "spec": {
                    "domain": {"memory": {"guest": "64Mi"}, "devices": {
                        "gpus": [
                            {"name": "a", "claimName": "c", "requestName": "one"},
                            {"name": "b", "claimName": "c", "requestName": "two"},
                        ],
                    }},
                    "resourceClaims": [{"name": "c", "resourceClaimName": "x"}],
                },
                "status": {"deviceStatus": {"gpuStatuses": [got("b", two), got("a", one), got("c", one)]}},
            })
        };
        let planned = |one: &str, two: &str, said: &[(String, HostAddress)]| {
            let (vmi, _) = crate::vmi::from_cluster(&vmi(one, two)).expect("a VMI");
            let options = PlanOptions {
                kernel: Some(PathBuf::from("/vmlinux")),
                host_devices: said.to_vec(),
                ..PlanOptions::default()
            };
            plan(&vmi, &options)
        };
        let (one, two) = ("0000:3b:00.0", "0000:3b:00.1");
        let found = planned(one, two, &[]).expect("two devices");
        let from: Vec<_> = found
            .host_devices
            .iter()
            .map(|source| &source.from)
            .collect();
        let address = |text: &str| HostDeviceOrigin::Address(text.parse().expect("an address"));
        assert_eq!(from, [&address(one), &address(two)]);
        let said = [("a".to_owned(), two.parse().expect("an address"))];
        for report in [planned(one, one, &[]), planned(one, two, &said)] {
            let report = report.expect_err("one device for two");
            assert_eq!(report.errors.len(), 1, "{report:?}");
            assert_eq!(report.errors[0].path, "spec.domain.devices.gpus");
        }
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
}
