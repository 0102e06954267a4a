//! `spec.resourceClaims[]`, and what the status says that devices of them got (dynamic resource allocation).

use super::host_address::HostAddress;
use super::host_devices::{HostDevice, HostDeviceFrom, HostDeviceKind};
use super::reader::{Node, Object};

/// A claim that the VMI's pod has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceClaim {
    /// Its name in the VMI and in the pod.
    pub name: String,
    /// Name of the ResourceClaim, if it is not made of a template.
    pub object: Option<String>,
}

pub(super) fn read(items: &[Node<'_>]) -> Vec<ResourceClaim> {
    let mut read: Vec<ResourceClaim> = Vec::new();
    for item in items {
        let claim = item.object();
        let name_node = claim.require("name", "the claim's name");
        let name = name_node.as_ref().and_then(Node::label);
        let object = claim.get("resourceClaimName");
        let template = claim.get("resourceClaimTemplateName");
        let is_whole = match (&object, &template) {
            (None, None) => {
                let accepted = "the name of a ResourceClaim, or resourceClaimTemplateName";
                claim.missing("resourceClaimName", accepted);
                false
            }
            (Some(object), Some(_)) => {
                object.error("one of resourceClaimName and resourceClaimTemplateName");
                false
            }
            (Some(one), None) | (None, Some(one)) => one.dns_name().is_some(),
        };
        let (Some(node), Some(name), true) = (name_node, name, is_whole) else {
            continue;
        };
        if read.iter().any(|other| other.name == name) {
            node.error("each name of resourceClaims once");
            continue;
        }
        read.push(ResourceClaim {
            name: name.to_owned(),
            object: object.and_then(|object| object.dns_name().map(str::to_owned)),
        });
    }
    read
}

/// Tells the devices of claims what they got.
pub(super) fn read_status(status: &Object<'_>, devices: &mut [HostDevice]) {
    let Some(status) = status.get("deviceStatus") else {
        return;
    };
    let status = status.object();
    for (list, kind) in [
        ("hostDeviceStatuses", HostDeviceKind::Any),
        ("gpuStatuses", HostDeviceKind::Gpu),
    ] {
        for item in status.items(list) {
            let item = item.object();
            let name = item.require("name", "the device's name");
            let name = name.and_then(|name| name.string());
            let address = read_address(&item);
            let is_it =
                |device: &&mut HostDevice| device.kind == kind && Some(&*device.name) == name;
            if let Some(device) = devices.iter_mut().find(is_it)
                && let HostDeviceFrom::Claim(claim) = &mut device.from
            {
                claim.address = address;
            }
        }
    }
}

/// A mediated device may say the address of its parent, too.
fn read_address(item: &Object<'_>) -> Option<HostAddress> {
    let got = item.get("deviceResourceClaimStatus")?.object();
    let attributes = got.get("attributes")?.object();
    let read = |name| {
        let node: Node<'_> = attributes.get(name)?;
        let address = node.string()?.parse().ok();
        if address.is_none() {
            node.error("a PCI address such as 0000:3b:00.0, or the UUID of a mediated device");
        }
        address
    };
    let (mediated, pci) = (read("mDevUUID"), read("pciAddress"));
    mediated.or(pci)
}
