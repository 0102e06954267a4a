//! What a run needs besides its VMI.

use std::path::Path;

use super::{HostDeviceOrigin, PlanOptions, disks, iso, launch_plan};
use crate::vmi::Vmi;

/// In words: the kernel, and each volume with the places where it is looked for.
pub fn needs(vmi: &Vmi) -> Vec<String> {
    let plan = launch_plan(vmi, &PlanOptions::default());
    let mut needs = vec![match &plan.kernel {
        Some(kernel) => format!("a kernel at {}, or --kernel FILE", shown(&kernel.path)),
        None => "a disk with the entries of a boot loader, or --kernel FILE".to_owned(),
    }];
    if let Some(initrd) = &plan.initrd {
        let path = shown(&initrd.path);
        needs.push(format!("an initial RAM disk at {path}, or --initrd FILE"));
    }
    let volumes = vmi.spec.volumes.iter();
    for volume in volumes.filter(|volume| disks::needs_path(&volume.source)) {
        let name = &volume.name;
        needs.push(format!("volume {name}: --volume {name}=DIR"));
    }
    for keys in &vmi.spec.access_keys {
        let (name, place) = (&keys.secret, shown(&iso::access_secret(&keys.secret)));
        needs.push(format!(
            "SSH keys {name} at {place}, or --volume {name}=DIR"
        ));
    }
    for source in &plan.host_devices {
        let name = &source.name;
        let from = match &source.from {
            HostDeviceOrigin::Resource(resource) => {
                format!("a device plugin that gives the pod one of {resource}")
            }
            HostDeviceOrigin::Network(_) => {
                "a network plugin that gives the pod a device".to_owned()
            }
            HostDeviceOrigin::Claim {
                name,
                request,
                directory,
            } => format!(
                "what request {request} of resource claim {name} got, in status.deviceStatus or {}",
                shown(directory)
            ),
            HostDeviceOrigin::Address(_) => continue,
        };
        needs.push(format!(
            "device {name}: {from}, or --host-device {name}=ADDRESS"
        ));
    }
    for (disk, source) in vmi.spec.devices.disks.iter().zip(&plan.disks) {
        let places: Vec<_> = source
            .image
            .places()
            .iter()
            .map(|place| shown(place))
            .collect();
        if places.is_empty() {
            continue;
        }
        let (name, places) = (&disk.name, places.join(" or "));
        needs.push(format!(
            "volume {name} at {places}, or --volume {name}=PATH"
        ));
    }
    needs
}

/// A path that acts on no terminal.
fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}
