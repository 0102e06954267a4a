//! `spec` and the parts of `spec.domain` that are not a file of their own.

use super::access_credentials::{self, AccessKeys};
use super::clock::{self, Clock};
use super::cpu::{self, Cpu};
use super::devices::{self, Devices};
use super::disks::Disk;
use super::features::{self, Features};
use super::firmware::{self, KernelBoot};
use super::identity::{self, Identity};
use super::memory::{self, Memory};
use super::networks::{self, Network};
use super::reader::{Node, Object};
use super::resource_claims::{self, ResourceClaim};
use super::resources;
use super::volumes::{self, MAX_LABEL, Volume, VolumeSource};

/// What the VMI is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// Seconds between the power button and a forced stop.
    pub grace_seconds: Option<u64>,
    /// Leave the machine paused after it is made.
    pub start_paused: bool,
    /// Host name for the guest.
    pub hostname: Option<String>,
    /// DNS subdomain for the guest.
    pub subdomain: Option<String>,
    /// SSH keys for the guest's first user.
    pub access_keys: Vec<AccessKeys>,
    /// Who the machine is to its guest.
    pub identity: Identity,
    /// vCPUs.
    pub cpu: Cpu,
    /// Clocks.
    pub clock: Clock,
    /// What it says of the hypervisor.
    pub features: Features,
    /// Guest RAM.
    pub memory: Memory,
    /// Direct kernel boot.
    pub kernel_boot: Option<KernelBoot>,
    /// What a guest reset does.
    pub reboot_policy: RebootPolicy,
    /// Devices.
    pub devices: Devices,
    /// Claims that devices of the host may come from.
    pub resource_claims: Vec<ResourceClaim>,
    /// The networks of the interfaces.
    pub networks: Vec<Network>,
    /// Where disks come from.
    pub volumes: Vec<Volume>,
}

/// `spec.domain.rebootPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebootPolicy {
    /// Start again in place.
    #[default]
    Reboot,
    /// End the run.
    Terminate,
}

pub(super) fn read(node: &Node<'_>) -> Spec {
    let spec = node.object();
    spec.word("architecture");
    for probe in ["livenessProbe", "readinessProbe"] {
        if let Some(probe) = spec.get(probe) {
            probe.object();
        }
    }
    let grace = spec.get("terminationGracePeriodSeconds");
    let start = spec.word("startStrategy");
    let (volumes, left_out) = volumes::read(&spec.items("volumes"));
    let mut read = Spec {
        grace_seconds: grace.and_then(|grace| grace.integer(0..=u64::from(u32::MAX))),
        start_paused: start.is_some(),
        hostname: label(&spec, "hostname"),
        subdomain: spec
            .get("subdomain")
            .and_then(|node| node.dns_name().map(str::to_owned)),
        access_keys: access_credentials::read(&spec.items("accessCredentials"), &volumes),
        resource_claims: resource_claims::read(&spec.items("resourceClaims")),
        networks: networks::read(&spec.items("networks")),
        volumes,
        ..Spec::default()
    };
    if let Some(domain) = spec.require("domain", "an object") {
        read_domain(&domain, &mut read);
    }
    let disks = &mut read.devices.disks;
    disks.retain(|disk| !left_out.contains(&disk.name));
    add_file_systems(node, &mut read, &left_out);
    leave_out_empty_drives(node, &mut read);
    add_disks(node, &mut read);
    let has_networks = !read.networks.is_empty();
    if read.devices.add_default_interface(has_networks) {
        read.networks
            .push(Network::default_pod("default".to_owned()));
    }
    read
}

/// A CD-ROM drive without a volume has no medium.
fn leave_out_empty_drives(node: &Node<'_>, spec: &mut Spec) {
    let Spec {
        devices, volumes, ..
    } = spec;
    devices.disks.retain(|disk| {
        let is_empty = disk.cdrom && !volumes.iter().any(|volume| volume.name == disk.name);
        if is_empty {
            let path = format!("{}.domain.devices.disks", node.path());
            let name = &disk.name;
            node.report_note(
                path,
                format_args!("the empty CD-ROM drive {name:?} is left out"),
            );
        }
        !is_empty
    });
}

/// A file system of files becomes a disk with its name as a label. Of the others, volumes that are `left_out` are
/// none either.
fn add_file_systems(node: &Node<'_>, spec: &mut Spec, left_out: &[String]) {
    let Spec {
        devices, volumes, ..
    } = spec;
    for (index, name) in &devices.filesystems {
        let path = format!("{}.domain.devices.filesystems[{index}]", node.path());
        let volume = volumes.iter_mut().find(|volume| volume.name == *name);
        match volume.map(|volume| &mut volume.source) {
            Some(VolumeSource::Files(files)) => {
                let label = name.get(..MAX_LABEL).unwrap_or(name);
                if label.len() < name.len() {
                    node.report_note(path, format_args!("the guest finds it as LABEL={label}"));
                }
                files.label = label.to_owned();
                devices.disks.push(Disk {
                    name: name.clone(),
                    ..Disk::default()
                });
            }
            // Names that do not match are found later.
            None if !left_out.contains(name) => {}
            _ => {
                let accepted = "a volume of configMap, secret, downwardAPI, serviceAccount or containerPath, no other \
                    directory is shared: use a disk, or a network file system";
                node.report_error(path, format_args!("the volume {name:?}"), accepted);
            }
        }
    }
}

/// KubeVirt adds a disk for a volume that none names.
fn add_disks(node: &Node<'_>, spec: &mut Spec) {
    for volume in &spec.volumes {
        if spec
            .devices
            .disks
            .iter()
            .any(|disk| disk.name == volume.name)
        {
            continue;
        }
        let path = format!("{}.volumes", node.path());
        let name = &volume.name;
        node.report_note(
            path,
            format_args!("no disk names {name:?}: one is added, as in KubeVirt"),
        );
        spec.devices.disks.push(Disk {
            name: name.clone(),
            ..Disk::default()
        });
    }
}

fn label(spec: &Object<'_>, field: &'static str) -> Option<String> {
    spec.get(field)?.label().map(str::to_owned)
}

fn read_domain(node: &Node<'_>, spec: &mut Spec) {
    let domain = node.object();
    let resources = domain
        .get("resources")
        .map(|node| resources::read(&node))
        .unwrap_or_default();
    spec.cpu = cpu::read(domain.get("cpu").as_ref(), &resources);
    spec.memory = memory::read(&domain, &resources);
    let firmware = domain.get("firmware").map(|node| node.object());
    let chassis = domain.get("chassis");
    spec.identity = identity::read(firmware.as_ref(), chassis.as_ref());
    spec.kernel_boot = firmware.as_ref().and_then(firmware::read_firmware);
    let clock = domain.get("clock").map(|node| clock::read(&node));
    spec.clock = clock.unwrap_or_default();
    let features = domain.get("features").map(|node| features::read(&node));
    spec.features = features.unwrap_or_default();
    if let Some(machine) = domain.get("machine") {
        machine.object();
    }
    if domain.word("rebootPolicy") == Some("Terminate") {
        spec.reboot_policy = RebootPolicy::Terminate;
    }
    spec.devices = match domain.get("devices") {
        Some(node) => devices::read(&node, &spec.resource_claims),
        None => Devices::default(),
    };
}
