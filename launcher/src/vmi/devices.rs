//! `spec.domain.devices`.

use devices::watchdog::WatchdogAction;

use super::disks::{self, Disk};
use super::host_devices::{self, HostDevice};
use super::interfaces::{self, Interface};
use super::networks::unique_name;
use super::reader::Node;
use super::resource_claims::ResourceClaim;

/// Devices of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// Disks in PCI slot order.
    pub disks: Vec<Disk>,
    /// NICs in the order of the VMI.
    pub interfaces: Vec<Interface>,
    /// Devices of the host: `hostDevices`, then `gpus`.
    pub host_devices: Vec<HostDevice>,
    /// Volumes that the guest is to find under their names, and where they are in the list.
    pub filesystems: Vec<(usize, String)>,
    /// Give the guest the pod network even if it names no interface.
    pub autoattach_pod_interface: bool,
    /// A virtio-rng device.
    pub rng: bool,
    /// A virtio-balloon device.
    pub balloon: bool,
    /// A virtio-vsock device.
    pub vsock: bool,
    /// A watchdog, and what it does.
    pub watchdog: Option<WatchdogAction>,
    /// Connect the serial console.
    pub serial_console: bool,
    /// One queue a vCPU for disks.
    pub block_multi_queue: bool,
    /// One queue pair a vCPU for NICs.
    pub network_multi_queue: bool,
    /// Under KubeVirt devices may come and go while the machine runs.
    pub hotplug: bool,
    /// A port by which the guest asks for metrics of the host.
    pub downward_metrics: bool,
}

impl Default for Devices {
    fn default() -> Self {
        Self {
            disks: Vec::new(),
            interfaces: Vec::new(),
            host_devices: Vec::new(),
            filesystems: Vec::new(),
            autoattach_pod_interface: true,
            rng: false,
            balloon: false,
            vsock: false,
            watchdog: None,
            serial_console: true,
            block_multi_queue: false,
            network_multi_queue: false,
            hotplug: true,
            downward_metrics: false,
        }
    }
}

impl Devices {
    /// Adds KubeVirt's default interface to a machine that says nothing about networks.
    pub(super) fn add_default_interface(&mut self, has_networks: bool) -> bool {
        let add = self.autoattach_pod_interface && self.interfaces.is_empty() && !has_networks;
        if add {
            self.interfaces
                .push(Interface::default_bridge("default".to_owned()));
        }
        add
    }
}

pub(super) fn read(node: &Node<'_>, claims: &[ResourceClaim]) -> Devices {
    let object = node.object();
    if let Some(rng) = object.get("rng") {
        rng.object();
    }
    let metrics = object.get("downwardMetrics");
    if let Some(metrics) = &metrics {
        metrics.object();
    }
    // Nothing but what the table says about them follows from these.
    object.boolean_or("autoattachGraphicsDevice", true);
    object.boolean("logSerialConsole");
    let flag = |name, default| object.boolean_or(name, default);
    Devices {
        disks: disks::read(&object.items("disks")),
        interfaces: interfaces::read(&object.items("interfaces")),
        host_devices: host_devices::read(&object, claims),
        filesystems: read_filesystems(&object.items("filesystems")),
        autoattach_pod_interface: flag("autoattachPodInterface", true),
        rng: object.get("rng").is_some(),
        balloon: flag("autoattachMemBalloon", false),
        vsock: flag("autoattachVSOCK", false),
        watchdog: object.get("watchdog").map(|node| read_watchdog(&node)),
        serial_console: flag("autoattachSerialConsole", true),
        block_multi_queue: flag("blockMultiQueue", false),
        network_multi_queue: flag("networkInterfaceMultiqueue", false),
        hotplug: !flag("disableHotplug", false),
        downward_metrics: metrics.is_some(),
    }
}

/// One that says no more than its name is KubeVirt's default.
fn read_watchdog(node: &Node<'_>) -> WatchdogAction {
    let watchdog = node.object();
    let name = watchdog.require("name", "the watchdog's name");
    name.map(|name| name.string().is_some());
    let timer = watchdog.get("i6300esb").map(|node| node.object());
    match timer.and_then(|timer| timer.word("action")) {
        Some("poweroff") => WatchdogAction::Poweroff,
        Some("shutdown") => WatchdogAction::Shutdown,
        _ => WatchdogAction::Reset,
    }
}

fn read_filesystems(items: &[Node<'_>]) -> Vec<(usize, String)> {
    let mut names: Vec<(usize, String)> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let filesystem = item.object();
        if let Some(virtiofs) = filesystem.require("virtiofs", "{}") {
            virtiofs.object();
        }
        let known: Vec<_> = names.iter().map(|(_, name)| name.as_str()).collect();
        let name = unique_name(&filesystem, "the name of a volume", &known);
        names.extend(name.map(|name| (index, name)));
    }
    names
}
