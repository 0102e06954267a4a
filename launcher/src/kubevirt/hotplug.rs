//! Devices that come and go by SyncVirtualMachine: which of them a VMI has, and what they are made of.

use std::path::{Path, PathBuf};

use devices::virtio::net::{BackendKind, NetOptions};
use serde_json::Value;

use super::head::Head;
use crate::network::{LaterLease, Resolver};
use crate::opener::{ImageToOpen, NicToOpen, OpenedNic};
use crate::plan::{self, LaterDisk, LaterNic};
use crate::vmi::{self, Report, Vmi};

/// Slots for devices that nobody knows of when the machine is made.
const SPARE_SLOTS: usize = 4;

/// What the pod says of its names, which guests are told.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A disk and where its image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewDisk {
    pub(super) disk: LaterDisk,
    pub(super) image: ImageToOpen,
}

/// A NIC and the pod's interface that is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewNic {
    pub(super) name: String,
    pub(super) open: NicToOpen,
    /// If not the interface's own.
    pub(super) mac: Option<[u8; 6]>,
    pub(super) link_up: bool,
    pub(super) lease: LaterLease,
}

impl NewNic {
    /// Its device on this interface.
    pub(super) fn options(&self, interface: &OpenedNic) -> NetOptions {
        let (mtu, routes) = (interface.mtu, &interface.routes);
        let lease = interface.address.map(|it| self.lease.of(it, routes, mtu));
        let lease6 = interface.address6.map(|it| self.lease.of6(it, mtu));
        NetOptions {
            mac: self.mac.unwrap_or(interface.mac),
            mtu,
            queue_pairs: self.open.queues,
            backend: BackendKind::Taps,
            link_up: self.link_up,
            lease,
            lease6,
            spoof_check: false,
            captured: false,
        }
    }
}

/// Devices that may come now.
#[derive(Debug, Default)]
pub(super) struct Coming {
    pub(super) disks: Vec<NewDisk>,
    pub(super) nics: Vec<NewNic>,
}

/// What of the pod devices are made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// Where virt-handler mounts volumes: a file, or a block device.
    volumes: PathBuf,
    resolver: Resolver,
}

impl Place {
    /// As the pod is now.
    pub(super) fn here(volumes: PathBuf) -> Self {
        let resolver = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        let resolver = Resolver::parse(&resolver);
        Self { volumes, resolver }
    }

    /// The disks of a VMI, in JSON, whose volumes are mounted, and the NICs whose interfaces have come.
    pub(super) fn coming(&self, head: &Head, vmi: &[u8]) -> Result<Coming, String> {
        if !head.has_hotpluggable() && !head.has_new_nics() {
            return Ok(Coming::default());
        }
        let mut value: Value = serde_json::from_slice(vmi)
            .map_err(|error| format!("The VMI is not understood: {error}"))?;
        // The machine has them already, or will not.
        if let Some(Value::Object(spec)) = value.get_mut("spec") {
            spec.remove("accessCredentials");
        }
        let (vmi, _) = from_cluster(&value, head).map_err(|report| {
            format!("The VirtualMachineInstance cannot be honoured:\n{report}")
        })?;
        let disks = plan::later_disks(&vmi).into_iter();
        let disks = disks.filter(|disk| head.is_mounted(&disk.name));
        let nics = plan::later_nics(&vmi).into_iter();
        let nics = nics.filter(|nic| head.has_come(&nic.name));
        Ok(Coming {
            disks: disks.map(|disk| new_disk(disk, &self.volumes)).collect(),
            nics: nics.map(|nic| self.new_nic(nic)).collect(),
        })
    }

    fn new_nic(&self, nic: LaterNic) -> NewNic {
        NewNic {
            name: nic.name,
            open: NicToOpen {
                pod_interfaces: nic.pod_interfaces,
                queues: nic.queue_pairs,
            },
            mac: nic.mac,
            link_up: nic.link_up,
            lease: LaterLease {
                resolver: self.resolver.clone(),
                hostname: nic.hostname,
                subdomain: nic.subdomain,
                options: nic.dhcp_options,
                index: nic.index,
            },
        }
    }
}

fn new_disk(disk: LaterDisk, directory: &Path) -> NewDisk {
    let LaterDisk {
        name,
        options,
        asked,
        overlay,
    } = &disk;
    let image = ImageToOpen {
        image: vec![directory.join(format!("{name}.img")), directory.join(name)],
        qcow2: false,
        overlay: *overlay,
        read_only: options.read_only,
        cache: asked.cache,
        logical_block_size: options.logical_block_size,
        match_volume: asked.match_volume,
    };
    NewDisk { disk, image }
}

/// A VMI as a cluster's API server has it. Volumes that virt-handler mounts while the machine runs come and go, also those
/// that do not say so themselves, as container disks.
pub(super) fn from_cluster(value: &Value, head: &Head) -> Result<(Vmi, Report), Report> {
    let (mut vmi, report) = vmi::from_cluster(value)?;
    for volume in &mut vmi.spec.volumes {
        volume.hotpluggable |= head.comes_and_goes(&volume.name);
    }
    Ok((vmi, report))
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
    use std::net::Ipv6Addr;

    use serde_json::json;

    use super::*;
    use crate::network::Route;

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
        let place = Place::here("/run/hp".into());
        let coming = place.coming(&Head::read(vmi.as_bytes())?, vmi.as_bytes())?;
        Ok(coming.disks)
    }

    #[test]
    fn nics_come_whose_interfaces_have_come() {
        let mut vmi = vmi();
        vmi["spec"]["hostname"] = json!("web");
        vmi["spec"]["networks"] = json!([
            {"name": "default", "pod": {}},
            {"name": "red", "multus": {"networkName": "ns/red"}},
            {"name": "blue", "multus": {"networkName": "ns/blue"}},
        ]);
        vmi["spec"]["domain"]["devices"]["interfaces"] = json!([
            {"name": "default", "masquerade": {}},
            {"name": "red", "bridge": {}},
            {"name": "blue", "bridge": {}, "macAddress": "02:00:00:00:00:0b", "state": "down"},
        ]);
        let status = |sources: [&str; 3]| {
            let names = ["default", "red", "blue"].into_iter().zip(sources);
            names
                .map(|(name, sources)| json!({"name": name, "infoSource": sources}))
                .collect::<Value>()
        };
        let coming = |vmi: &Value| {
            let vmi = vmi.to_string();
            let head = Head::read(vmi.as_bytes()).expect("a VMI");
            let place = Place::here(PathBuf::new());
            place.coming(&head, vmi.as_bytes()).expect("read").nics
        };
        vmi["status"]["interfaces"] = status([
            "domain",
            "domain, guest-agent, multus-status",
            "multus-status",
        ]);
        let [nic] = &coming(&vmi)[..] else {
            panic!("one is new");
        };
        // `printf blue | sha256sum`, the first 11 digits; and by order, as in old pods.
        assert_eq!(nic.open.pod_interfaces, ["pod16477688c0e", "net2"]);
        let interface = OpenedNic {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1400,
            address: Some(([10, 1, 0, 5].into(), 24)),
            routes: vec![Route {
                destination: [0, 0, 0, 0].into(),
                prefix_len: 0,
                gateway: [10, 1, 0, 1].into(),
            }],
            address6: Some((Ipv6Addr::LOCALHOST, 64)),
        };
        let options = nic.options(&interface);
        assert_eq!(
            (options.mac[5], options.mtu, options.link_up),
            (11, 1400, false)
        );
        let lease = options.lease.expect("an address");
        assert_eq!(lease.hostname.as_deref(), Some("web"));
        assert_eq!(
            (lease.address.to_string(), lease.prefix_len),
            ("10.1.0.5".to_owned(), 24)
        );
        assert_eq!(lease.server.to_string(), "169.254.75.12");
        assert_eq!(lease.router, Some([10, 1, 0, 1].into()));
        let lease6 = options.lease6.expect("an address");
        assert_eq!(lease6.address, Ipv6Addr::LOCALHOST);
        let bare = OpenedNic {
            address: None,
            address6: None,
            ..interface
        };
        let options = nic.options(&bare);
        assert_eq!((options.lease, options.lease6), (None, None));
        // Not before it is in the pod, nor when it is to go.
        vmi["status"]["interfaces"] = status(["domain", "domain", ""]);
        assert_eq!(coming(&vmi), []);
        vmi["status"]["interfaces"] = status(["domain", "domain", "multus-status"]);
        vmi["spec"]["domain"]["devices"]["interfaces"][2]["state"] = json!("absent");
        assert_eq!(coming(&vmi), []);
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
        assert_eq!(names(&vmi), ["data", "next"], "virt-handler mounts it");
        vmi["status"]["volumeStatus"][1]["hotplugVolume"] = json!(null);
        assert_eq!(names(&vmi), ["next"]);
        vmi["status"]["volumeStatus"][2]["hotplugVolume"] = json!(null);
        assert_eq!(names(&vmi), ["next"], "it says so itself");
        vmi["spec"]["volumes"][2]["dataVolume"]["hotpluggable"] = json!(null);
        assert_eq!(names(&vmi), Vec::<String>::new());
        vmi["status"] = json!(null);
        assert_eq!(names(&vmi), Vec::<String>::new());
    }

    /// Which of them come and go only virt-handler says.
    #[test]
    fn container_disks_come_over_which_others_lie() {
        let mut vmi = vmi();
        vmi["spec"]["volumes"][1] = json!({"name": "data", "containerDisk": {"image": "more"}});
        vmi["spec"]["volumes"][2] = json!({"name": "next", "containerDisk": {"image": "next"}});
        let disks = of(&vmi).expect("read");
        let [NewDisk { disk, image }] = &disks[..] else {
            panic!("{disks:?}");
        };
        assert_eq!(
            (&*disk.name, disk.overlay, image.overlay),
            ("data", true, true)
        );
        assert_eq!(image.image[0], Path::new("/run/hp/data.img"));
        let head = Head::read(vmi.to_string().as_bytes()).expect("a VMI");
        vmi["spec"]["accessCredentials"] = json!(null);
        let (vmi, _) = from_cluster(&vmi, &head).expect("a VMI");
        assert_eq!(slots(&vmi), 6);
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
