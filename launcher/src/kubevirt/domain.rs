//! The Domain object: what virt-handler knows of a machine. Names of fields are those of KubeVirt's Go
//! structures, which have no JSON names of their own.

use serde::{Deserialize, Serialize};

mod host_device;

use self::host_device::HostDevice;
use super::agent::{AgentView, Interface as GuestInterface, Os};
use super::disk_name::target;
use crate::plan::AGENT;

/// What of a machine does not change while it is there, as far as virt-handler reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Facts {
    /// Sockets, cores, threads.
    pub(super) topology: [u32; 3],
    /// Guest RAM, bytes.
    pub(super) memory: u64,
    /// The guest has a port for its agent.
    pub(super) agent_port: bool,
    /// NICs.
    pub(super) interfaces: Vec<InterfaceFacts>,
    /// All disks.
    pub(super) disks: Vec<DiskFacts>,
    /// Devices of the host, by the names that virt-handler knows them by.
    pub(super) host_devices: Vec<String>,
}

/// A NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InterfaceFacts {
    /// Its name in the VMI.
    pub(super) name: String,
    /// Its device in the machine.
    pub(super) device: String,
    pub(super) mac: [u8; 6],
    pub(super) queues: u16,
    pub(super) link_up: bool,
    /// It can go while the machine runs.
    pub(super) comes_and_goes: bool,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DiskFacts {
    /// Its name in the VMI, which is its volume's and its device's.
    pub(super) name: String,
    /// The guest's number for it.
    pub(super) number: usize,
    /// It was added to the machine while that ran.
    pub(super) comes_and_goes: bool,
    /// Where the image is; empty where it is made of nothing.
    pub(super) path: String,
    /// The image is a block device.
    pub(super) is_block: bool,
    /// The guest writes to it where it is, so it can become larger.
    pub(super) grows: bool,
}

/// Whose machine it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    /// `spec.domain.firmware.uuid`.
    pub(super) firmware_uuid: String,
}

/// What the machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Running,
    PausedByUser,
    /// A disk failed, which may be tried again.
    PausedByDisk,
    /// For another reason.
    Paused,
    ShuttingDown,
    /// The guest powered off.
    PoweredOff,
    /// It was ended from outside.
    Destroyed,
    /// Its guest crashed, or the machine failed.
    Crashed,
    /// Nothing is left of it.
    Gone,
}

impl Condition {
    /// There is a guest.
    fn is_alive(self) -> bool {
        !matches!(
            self,
            Self::PoweredOff | Self::Destroyed | Self::Crashed | Self::Gone
        )
    }

    /// `Status.Status` and `Status.Reason`.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Running => ("Running", "Unknown"),
            Self::PausedByUser => ("Paused", "User"),
            Self::PausedByDisk => ("Paused", "IOError"),
            Self::Paused => ("Paused", "Unknown"),
            Self::ShuttingDown => ("ShuttingDown", "Unknown"),
            Self::PoweredOff => ("Shutoff", "Shutdown"),
            Self::Destroyed => ("Shutoff", "Destroyed"),
            Self::Crashed => ("Shutoff", "Crashed"),
            Self::Gone => ("NoState", "NonExistent"),
        }
    }
}

/// What virt-handler keeps here about the end of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GracePeriod {
    /// Seconds that a guest has for its shutdown.
    pub(super) deletion_grace_period_seconds: u64,
    /// When it was asked to.
    pub(super) deletion_timestamp: Option<String>,
    /// The pod is to end.
    pub(super) marked_for_graceful_shutdown: Option<bool>,
}

/// A dump of the machine's memory to a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct MemoryDump {
    /// Without its directory.
    pub(super) file_name: String,
    pub(super) start_timestamp: String,
    pub(super) end_timestamp: Option<String>,
    /// It has ended, well or not.
    pub(super) completed: bool,
    pub(super) failed: bool,
    pub(super) failure_reason: String,
}

/// A domain at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Domain<'a> {
    pub(super) identity: &'a Identity,
    pub(super) facts: &'a Facts,
    pub(super) agent: &'a AgentView,
    /// Whether the guest has the keys and passwords that it is to have.
    pub(super) credentials: Option<&'a Result<(), String>>,
    pub(super) dump: Option<&'a MemoryDump>,
    pub(super) grace: &'a GracePeriod,
    pub(super) condition: Condition,
    /// When it went.
    pub(super) gone_since: Option<&'a str>,
}

#[derive(Serialize)]
struct Object<'a> {
    kind: &'static str,
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    #[serde(rename = "ObjectMeta")]
    meta: Meta<'a>,
    #[serde(rename = "Spec")]
    spec: Spec<'a>,
    #[serde(rename = "Status")]
    status: Status<'a>,
}

#[derive(Serialize)]
struct Meta<'a> {
    name: &'a str,
    namespace: &'a str,
    uid: &'a str,
    #[serde(rename = "deletionTimestamp", skip_serializing_if = "Option::is_none")]
    gone_since: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Spec<'a> {
    name: String,
    #[serde(rename = "UUID")]
    uuid: &'a str,
    r#type: &'static str,
    memory: Amount,
    current_memory: Amount,
    #[serde(rename = "VCPU")]
    vcpu: Vcpus,
    #[serde(rename = "CPU")]
    cpu: Cpu,
    features: Features,
    metadata: Metadata<'a>,
    devices: Devices<'a>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Amount {
    value: u64,
    unit: &'static str,
}

#[derive(Serialize)]
struct Vcpus {
    #[serde(rename = "CPUs")]
    count: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Cpu {
    topology: Topology,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Topology {
    sockets: u32,
    cores: u32,
    threads: u32,
}

/// The machine has ACPI always.
#[derive(Serialize)]
struct Features {
    #[serde(rename = "ACPI")]
    acpi: Nothing,
}

#[derive(Serialize)]
struct Nothing {}

#[derive(Serialize)]
struct Metadata<'a> {
    #[serde(rename = "KubeVirt")]
    kubevirt: KubeVirt<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct KubeVirt<'a> {
    #[serde(rename = "UID")]
    uid: &'a str,
    grace_period: &'a GracePeriod,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_credential: Option<AccessCredential<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_dump: Option<&'a MemoryDump>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AccessCredential<'a> {
    succeeded: bool,
    message: &'a str,
}

impl<'a> AccessCredential<'a> {
    fn new(result: &'a Result<(), String>) -> Self {
        Self {
            succeeded: result.is_ok(),
            message: result.as_ref().err().map_or("", |reason| reason),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Devices<'a> {
    interfaces: Vec<Interface<'a>>,
    disks: Vec<Disk<'a>>,
    host_devices: Vec<HostDevice<'a>>,
    channels: Vec<Channel>,
}

/// A port of the guest.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Channel {
    target: ChannelTarget,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ChannelTarget {
    name: &'static str,
    state: &'static str,
}

/// virt-handler takes alias and MAC address for granted.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Interface<'a> {
    alias: Alias<'a>,
    #[serde(rename = "MAC")]
    mac: Mac,
    driver: Driver,
    link_state: LinkState,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Alias<'a> {
    name: &'a str,
    user_defined: bool,
}

impl<'a> Alias<'a> {
    fn of(name: &'a str) -> Self {
        Self {
            name,
            user_defined: true,
        }
    }
}

#[derive(Serialize)]
struct Mac {
    #[serde(rename = "MAC")]
    address: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Driver {
    queues: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct LinkState {
    state: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Disk<'a> {
    alias: Alias<'a>,
    source: Source<'a>,
    target: Target,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Source<'a> {
    file: &'a str,
    dev: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Target {
    device: String,
    bus: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status<'a> {
    status: &'static str,
    reason: &'static str,
    interfaces: &'a [GuestInterface],
    #[serde(rename = "OSInfo")]
    os: &'a Os,
    #[serde(rename = "FSFreezeStatus")]
    freeze: FreezeStatus<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct FreezeStatus<'a> {
    status: &'a str,
}

impl<'a> Domain<'a> {
    /// As virt-handler reads it.
    pub(super) fn to_json(self) -> String {
        let Identity {
            name,
            namespace,
            uid,
            firmware_uuid,
        } = self.identity;
        let memory = Amount {
            value: self.facts.memory,
            unit: "b",
        };
        let [sockets, cores, threads] = self.facts.topology;
        let (status, reason) = self.condition.words();
        let object = Object {
            kind: "Domain",
            api_version: "1.2.2",
            meta: Meta {
                name,
                namespace,
                uid,
                gone_since: self.gone_since,
            },
            spec: Spec {
                name: format!("{namespace}_{name}"),
                uuid: firmware_uuid,
                r#type: "kvm",
                memory,
                current_memory: memory,
                vcpu: Vcpus {
                    count: sockets * cores * threads,
                },
                cpu: Cpu {
                    topology: Topology {
                        sockets,
                        cores,
                        threads,
                    },
                },
                features: Features { acpi: Nothing {} },
                metadata: Metadata {
                    kubevirt: KubeVirt {
                        uid,
                        grace_period: self.grace,
                        access_credential: self.credentials.map(AccessCredential::new),
                        memory_dump: self.dump,
                    },
                },
                devices: self.devices(),
            },
            status: Status {
                status,
                reason,
                interfaces: &self.agent.interfaces,
                os: &self.agent.os,
                freeze: FreezeStatus {
                    status: &self.agent.freeze,
                },
            },
        };
        // Plain data, which JSON always has words for.
        serde_json::to_string(&object).unwrap_or_default()
    }

    fn channels(&self) -> Vec<Channel> {
        let state = match self.agent.connected && self.condition.is_alive() {
            true => "connected",
            false => "disconnected",
        };
        let target = ChannelTarget { name: AGENT, state };
        match self.facts.agent_port {
            true => vec![Channel { target }],
            false => Vec::new(),
        }
    }

    fn devices(&self) -> Devices<'a> {
        let interface = |nic: &'a InterfaceFacts| {
            let InterfaceFacts {
                name,
                mac: [a, b, c, d, e, f],
                queues,
                link_up,
                ..
            } = nic;
            Interface {
                alias: Alias::of(name),
                mac: Mac {
                    address: format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
                },
                driver: Driver { queues: *queues },
                link_state: LinkState {
                    state: if *link_up { "up" } else { "down" },
                },
            }
        };
        let disk = |disk: &'a DiskFacts| Disk {
            alias: Alias::of(&disk.name),
            source: match disk.is_block {
                false => Source {
                    file: &disk.path,
                    dev: "",
                },
                true => Source {
                    file: "",
                    dev: &disk.path,
                },
            },
            target: Target {
                device: target(disk.number),
                bus: "virtio",
            },
        };
        Devices {
            interfaces: self.facts.interfaces.iter().map(interface).collect(),
            disks: self.facts.disks.iter().map(disk).collect(),
            host_devices: host_device::all(&self.facts.host_devices),
            channels: self.channels(),
        }
    }
}

#[cfg(test)]
mod tests;
