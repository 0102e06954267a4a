//! `spec.domain.devices`.

use super::disks::{self, Disk};
use super::interfaces::{self, Interface};
use super::reader::{Fields, Node, Object};

/// Devices of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// Disks in PCI slot order.
    pub disks: Vec<Disk>,
    /// NICs in the order of the VMI.
    pub interfaces: Vec<Interface>,
    /// Give the guest the pod network even if it names no interface.
    pub autoattach_pod_interface: bool,
    /// A virtio-rng device.
    pub rng: bool,
    /// Connect the serial console.
    pub serial_console: bool,
    /// One queue a vCPU for disks.
    pub block_multi_queue: bool,
    /// One queue pair a vCPU for NICs.
    pub network_multi_queue: bool,
}

impl Default for Devices {
    fn default() -> Self {
        Self {
            disks: Vec::new(),
            interfaces: Vec::new(),
            autoattach_pod_interface: true,
            rng: false,
            serial_console: true,
            block_multi_queue: false,
            network_multi_queue: false,
        }
    }
}

const DEVICES: Fields = Fields {
    honoured: &[
        "autoattachGraphicsDevice",
        "autoattachMemBalloon",
        "autoattachPodInterface",
        "autoattachSerialConsole",
        "blockMultiQueue",
        "disks",
        "interfaces",
        "logSerialConsole",
        "networkInterfaceMultiqueue",
        "rng",
    ],
    accepted: &[
        (
            "autoattachInputDevice",
            "there is no graphics device and so no input device",
        ),
        ("disableHotplug", "there is no hotplug"),
        ("panicDevices", "there is always one pvpanic device"),
    ],
    refused: &[
        ("autoattachVSOCK", "there is no vsock device"),
        ("clientPassthrough", "there is no USB"),
        ("downwardMetrics", "there is no virtio-serial"),
        ("filesystems", "file system sharing is not supported"),
        ("gpus", "host devices are not supported"),
        ("hostDevices", "host devices are not supported"),
        ("inputs", "there are no input devices"),
        ("sound", "there is no sound device"),
        ("tpm", "there is no TPM"),
        ("useVirtioTransitional", "devices are virtio 1.2"),
        ("video", "there is no graphics device"),
        ("watchdog", "there is no watchdog"),
    ],
};

const RNG: Fields = Fields {
    honoured: &[],
    accepted: &[],
    refused: &[],
};

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

pub(super) fn read(node: &Node<'_>) -> Devices {
    let object = node.object(&DEVICES);
    if let Some(rng) = object.get("rng") {
        rng.object(&RNG);
    }
    note_unless_off(
        &object,
        "autoattachGraphicsDevice",
        "there is no graphics device: use the serial console",
    );
    note_unless_off(
        &object,
        "autoattachMemBalloon",
        "there is no balloon device",
    );
    if object.boolean("logSerialConsole") == Some(true) {
        object.note(
            "logSerialConsole",
            "no log is kept: use --console to say where output goes",
        );
    }
    let flag = |name, default| object.boolean(name).unwrap_or(default);
    Devices {
        disks: disks::read(&object.items("disks")),
        interfaces: interfaces::read(&object.items("interfaces")),
        autoattach_pod_interface: flag("autoattachPodInterface", true),
        rng: object.get("rng").is_some(),
        serial_console: flag("autoattachSerialConsole", true),
        block_multi_queue: flag("blockMultiQueue", false),
        network_multi_queue: flag("networkInterfaceMultiqueue", false),
    }
}

fn note_unless_off(object: &Object<'_>, name: &'static str, note: &str) {
    if object.boolean(name).unwrap_or(true) {
        object.note(name, note);
    }
}
