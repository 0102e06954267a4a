//! `spec.domain.devices.hostDevices[]` and `gpus[]`: devices of the host that the guest has to itself.

use super::host_address::HostAddress;
use super::reader::{Node, Object};
use super::resource_claims::ResourceClaim;

/// A device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Name, which no other host device of the VMI has.
    pub name: String,
    /// Which list it is in.
    pub kind: HostDeviceKind,
    /// What says which device it is.
    pub from: HostDeviceFrom,
}

/// What says which device of the host is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostDeviceFrom {
    /// The device plugin of this resource.
    Resource(String),
    /// The driver of a resource claim.
    Claim(ClaimRequest),
}

/// A request of a resource claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRequest {
    /// Name of the claim in `spec.resourceClaims`.
    pub claim: String,
    /// Name of the request in the claim.
    pub request: String,
    /// The device that it got, where the VMI's status says it.
    pub address: Option<HostAddress>,
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

pub(super) fn read(devices: &Object<'_>, claims: &[ResourceClaim]) -> Vec<HostDevice> {
    let mut read: Vec<HostDevice> = Vec::new();
    for (list, kind) in [
        ("hostDevices", HostDeviceKind::Any),
        ("gpus", HostDeviceKind::Gpu),
    ] {
        for item in devices.items(list) {
            let device = item.object();
            let name = read_name(&device, &read);
            let from = read_from(&device, claims, &read);
            if let (Some(name), Some(from)) = (name, from) {
                read.push(HostDevice { name, kind, from });
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

fn read_from(
    device: &Object<'_>,
    claims: &[ResourceClaim],
    others: &[HostDevice],
) -> Option<HostDeviceFrom> {
    let resource = device.get("deviceName");
    let claim = device.get("claimName");
    let request = device.get("requestName");
    match (resource, claim, request) {
        (Some(resource), None, None) => read_resource(&resource),
        (None, Some(claim), Some(request)) => read_claim((&claim, &request), claims, others),
        (None, Some(_), None) => {
            device.missing("requestName", "the name of a request of the claim");
            None
        }
        (None, None, Some(_)) => {
            device.missing("claimName", "the name of a claim in spec.resourceClaims");
            None
        }
        (None, None, None) => {
            let accepted = format!("{A_RESOURCE}, or claimName and requestName");
            device.missing("deviceName", &accepted);
            None
        }
        (Some(resource), ..) => {
            resource.error("a device of a plugin or one of a resource claim, not both");
            None
        }
    }
}

const A_RESOURCE: &str = "the resource of a device plugin, such as nvidia.com/TU104GL_Tesla_T4";

fn read_resource(node: &Node<'_>) -> Option<HostDeviceFrom> {
    let name = node.string()?;
    let is_allowed = |c: u8| c.is_ascii_alphanumeric() || b"-_./".contains(&c);
    if name.len() > MAX_RESOURCE || !name.bytes().all(is_allowed) {
        node.error(A_RESOURCE);
        return None;
    }
    Some(HostDeviceFrom::Resource(name.to_owned()))
}

/// Both names become parts of a path.
fn read_claim(
    (claim, request): (&Node<'_>, &Node<'_>),
    claims: &[ResourceClaim],
    others: &[HostDevice],
) -> Option<HostDeviceFrom> {
    let (name, request_name) = (claim.label(), request.label());
    let (name, request_name) = (name?, request_name?);
    if !claims.iter().any(|known| known.name == name) {
        claim.error("a name in spec.resourceClaims");
        return None;
    }
    let is_same = |other: &HostDevice| match &other.from {
        HostDeviceFrom::Claim(other) => other.claim == name && other.request == request_name,
        HostDeviceFrom::Resource(_) => false,
    };
    if others.iter().any(is_same) {
        request.error("each request of a claim once, which gets one device");
        return None;
    }
    Some(HostDeviceFrom::Claim(ClaimRequest {
        claim: name.to_owned(),
        request: request_name.to_owned(),
        address: None,
    }))
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
            .map(|device| (&*device.name, device.kind, device.from.clone()))
            .collect();
        let of = |resource: &str| HostDeviceFrom::Resource(resource.to_owned());
        assert_eq!(
            devices,
            [
                ("my_NIC", HostDeviceKind::Any, of("intel.com/qat")),
                ("gpu1", HostDeviceKind::Gpu, of("nvidia.com/T4")),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_said_by_its_path() {
        let errors = read(json!({
            "gpus": [
                {"name": "a", "deviceName": "x/y"},
                {"name": "b", "claimName": "c", "requestName": "r"},
                {"name": "c", "claimName": "c"},
                {"name": "d", "requestName": "r"},
                {"name": "e", "deviceName": "x/y", "claimName": "c", "requestName": "r"},
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
                "gpus[2].requestName",
                "gpus[3].claimName",
                "gpus[4].deviceName",
                "gpus[5].name",
                "gpus[5].deviceName",
            ],
            "{errors:#?}"
        );
    }
}
