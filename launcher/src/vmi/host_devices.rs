//! `spec.domain.devices.hostDevices[]` and `gpus[]`: devices of the host that the guest has to itself.

use super::reader::{Node, Object};

/// A device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Name, which no other host device of the VMI has.
    pub name: String,
    /// Which list it is in.
    pub kind: HostDeviceKind,
    /// The device plugin's resource that it is one of.
    pub resource: String,
}

/// The lists of host devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostDeviceKind {
    /// `hostDevices`.
    Any,
    /// `gpus`.
    Gpu,
}

/// Longest name: a part of what virt-handler knows the device by.
const MAX_NAME: usize = 63;

/// Longest name of a resource: a DNS name, a slash, and a name of 63 characters.
const MAX_RESOURCE: usize = 253 + 1 + 63;

pub(super) fn read(devices: &Object<'_>) -> Vec<HostDevice> {
    let mut read: Vec<HostDevice> = Vec::new();
    for (list, kind) in [
        ("hostDevices", HostDeviceKind::Any),
        ("gpus", HostDeviceKind::Gpu),
    ] {
        for item in devices.items(list) {
            let device = item.object();
            let name = read_name(&device, &read);
            if let (Some(name), Some(resource)) = (name, read_resource(&device)) {
                read.push(HostDevice {
                    name,
                    kind,
                    resource,
                });
            }
        }
    }
    read
}

/// As libvirt takes names of devices.
fn read_name(device: &Object<'_>, others: &[HostDevice]) -> Option<String> {
    let node = device.require("name", "the device's name")?;
    let name = node.string()?;
    let is_allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    if !(1..=MAX_NAME).contains(&name.len()) || !name.bytes().all(is_allowed) {
        node.error(format_args!(
            "at most {MAX_NAME} of a-z, A-Z, 0-9, '-' and '_'"
        ));
        return None;
    }
    if others.iter().any(|other| other.name == name) {
        node.error("each name of gpus and hostDevices once");
        return None;
    }
    Some(name.to_owned())
}

fn read_resource(device: &Object<'_>) -> Option<String> {
    let accepted = "the resource of a device plugin, such as nvidia.com/TU104GL_Tesla_T4";
    let node: Node<'_> = match device.get("deviceName") {
        Some(node) => node,
        None => {
            if !device.is_explained() {
                device.missing("deviceName", accepted);
            }
            return None;
        }
    };
    let name = node.string()?;
    let is_allowed = |c: u8| c.is_ascii_alphanumeric() || b"-_./".contains(&c);
    if name.len() > MAX_RESOURCE || !name.bytes().all(is_allowed) {
        node.error(accepted);
        return None;
    }
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::from_value;
    use super::*;

    fn read(devices: Value) -> Result<Vec<HostDevice>, Vec<String>> {
        let vmi = json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm"},
            "spec": {"domain": {"memory": {"guest": "64Mi"}, "devices": devices}},
        });
        from_value(String::new(), &vmi, false)
            .map(|(vmi, _)| vmi.spec.devices.host_devices)
            .map_err(|report| report.errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn both_lists_are_read() {
        let devices = read(json!({
            "gpus": [{"name": "gpu1", "deviceName": "nvidia.com/T4", "virtualGPUOptions": {"display": {"enabled": true}}}],
            "hostDevices": [{"name": "my_NIC", "deviceName": "intel.com/qat", "tag": "fast"}],
        }))
        .expect("both are fine");
        let devices: Vec<_> = devices
            .iter()
            .map(|device| (&*device.name, device.kind, &*device.resource))
            .collect();
        assert_eq!(
            devices,
            [
                ("my_NIC", HostDeviceKind::Any, "intel.com/qat"),
                ("gpu1", HostDeviceKind::Gpu, "nvidia.com/T4"),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_said_by_its_path() {
        let errors = read(json!({
            "gpus": [
                {"name": "a", "deviceName": "x/y"},
                {"name": "b", "claimName": "c", "requestName": "r"},
                {"name": "../b", "deviceName": "x/y=z"},
            ],
            "hostDevices": [{"name": "a", "deviceName": "x/y"}, {"deviceName": "x/y"}, {"name": "c"}],
        }))
        .expect_err("all but two");
        let paths: Vec<_> = errors
            .iter()
            .map(|error| error.split(": ").next().unwrap_or_default())
            .map(|path| path.trim_start_matches("spec.domain.devices."))
            .collect();
        assert_eq!(
            paths,
            [
                "hostDevices[1].name",
                "hostDevices[2].deviceName",
                "gpus[0].name",
                "gpus[1].claimName",
                "gpus[1].requestName",
                "gpus[2].name",
                "gpus[2].deviceName",
            ],
            "{errors:#?}"
        );
    }
}
