//! Disks that come and go by SyncVirtualMachine: which of them a VMI has, and where virt-handler mounts them.

use std::path::Path;

use serde_json::Value;

use super::head::Head;
use crate::opener::ImageToOpen;
use crate::plan::{self, LaterDisk};
use crate::vmi::{self, Vmi};

/// Slots for devices that nobody knows of when the machine is made.
const SPARE_SLOTS: usize = 4;

/// A disk and where its image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewDisk {
    pub(super) disk: LaterDisk,
    pub(super) image: ImageToOpen,
}

/// The disks of a VMI, in JSON, whose volumes are mounted below `directory`: a file, or a block device.
pub(super) fn disks(head: &Head, vmi: &[u8], directory: &Path) -> Result<Vec<NewDisk>, String> {
    if !head.has_hotpluggable() {
        return Ok(Vec::new());
    }
    let mut value: Value = serde_json::from_slice(vmi)
        .map_err(|error| format!("The VMI is not understood: {error}"))?;
    // The machine has them already, or will not.
    if let Some(Value::Object(spec)) = value.get_mut("spec") {
        spec.remove("accessCredentials");
    }
    let (vmi, _) = vmi::from_cluster(&value)
        .map_err(|report| format!("The VirtualMachineInstance cannot be honoured:\n{report}"))?;
    let disks = plan::later_disks(&vmi).into_iter();
    let mounted = disks.filter(|disk| head.is_mounted(&disk.name));
    Ok(mounted.map(|disk| new_disk(disk, directory)).collect())
}

fn new_disk(disk: LaterDisk, directory: &Path) -> NewDisk {
    let LaterDisk {
        name,
        options,
        cache,
    } = &disk;
    let image = ImageToOpen {
        image: vec![directory.join(format!("{name}.img")), directory.join(name)],
        qcow2: false,
        read_only: options.read_only,
        cache: *cache,
        logical_block_size: options.logical_block_size,
    };
    NewDisk { disk, image }
}

/// Slots that a machine gets for devices that come later.
pub(super) fn slots(vmi: &Vmi) -> u8 {
    if !vmi.spec.devices.hotplug {
        return 0;
    }
    let known = plan::later_disks(vmi).len();
    u8::try_from(SPARE_SLOTS + known).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vmi() -> Value {
        json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm", "namespace": "ns"},
            "spec": {
                "domain": {
                    "memory": {"guest": "64Mi"},
                    "devices": {"disks": [
                        {"name": "root", "disk": {"bus": "virtio"}},
                        {"name": "data", "serial": "PV-1", "disk": {"bus": "scsi"}},
                        {"name": "next", "cache": "writeback", "disk": {"readonly": true}},
                    ]},
                },
                "volumes": [
                    {"name": "root", "containerDisk": {"image": "golden"}},
                    {"name": "data", "persistentVolumeClaim": {"claimName": "c", "hotpluggable": true}},
                    {"name": "next", "dataVolume": {"name": "d", "hotpluggable": true}},
                ],
                "accessCredentials": [{"userPassword": {"source": {"secret": {"secretName": "s"}},
                    "propagationMethod": {"qemuGuestAgent": {}}}}],
            },
            "status": {"volumeStatus": [
                {"name": "root", "target": "vda"},
                {"name": "data", "phase": "MountedToPod", "hotplugVolume": {}},
                {"name": "next", "phase": "AttachedToNode", "hotplugVolume": {}},
            ]},
        })
    }

    fn of(vmi: &Value) -> Result<Vec<NewDisk>, String> {
        let vmi = vmi.to_string();
        disks(
            &Head::read(vmi.as_bytes())?,
            vmi.as_bytes(),
            Path::new("/run/hp"),
        )
    }

    fn names(vmi: &Value) -> Vec<String> {
        let disks = of(vmi).expect("read").into_iter();
        disks.map(|new| new.disk.name).collect()
    }

    #[test]
    fn what_is_mounted_may_come() {
        let mut vmi = vmi();
        let disks = of(&vmi).expect("read");
        let [NewDisk { disk, image }] = &disks[..] else {
            panic!("{disks:?}");
        };
        assert_eq!(
            (&*disk.name, disk.options.serial.as_deref()),
            ("data", Some("PV-1"))
        );
        let places = ["/run/hp/data.img", "/run/hp/data"].map(Into::into);
        assert_eq!((&image.image[..], image.read_only), (&places[..], false));
        vmi["status"]["volumeStatus"][2]["phase"] = json!("Ready");
        assert_eq!(names(&vmi), ["data", "next"]);
        let next = of(&vmi).expect("read").remove(1);
        assert!(next.image.read_only && next.image.cache.is_some());
        vmi["spec"]["volumes"][1]["persistentVolumeClaim"]["hotpluggable"] = json!(false);
        assert_eq!(names(&vmi), ["next"]);
        vmi["spec"]["volumes"][2]["dataVolume"]["hotpluggable"] = json!(null);
        assert_eq!(names(&vmi), Vec::<String>::new());
        vmi["status"] = json!(null);
        assert_eq!(names(&vmi), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_is_told_with_its_field() {
        let mut vmi = vmi();
        vmi["spec"]["domain"]["devices"]["disks"][1]["blockSize"] =
            json!({"custom": {"logical": 7}});
        let error = of(&vmi).expect_err("refused");
        assert!(
            error.contains("spec.domain.devices.disks[1].blockSize"),
            "{error}"
        );
    }

    #[test]
    fn a_machine_has_slots_for_more() {
        let mut value = vmi();
        let spec = value["spec"].as_object_mut().expect("a spec");
        spec.remove("accessCredentials");
        let (vmi, _) = vmi::from_cluster(&value).expect("a VMI");
        assert_eq!(slots(&vmi), 6);
        value["spec"]["domain"]["devices"]["disableHotplug"] = json!(true);
        let (vmi, _) = vmi::from_cluster(&value).expect("a VMI");
        assert_eq!(slots(&vmi), 0);
    }
}
