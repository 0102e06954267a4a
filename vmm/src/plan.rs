//! What the machine is to be: plain validated data, made by the launcher, without paths or
//! descriptors. Addresses, slots and vectors are a function of the plan.

use devices::vfio::MAX_VECTORS;
use devices::virtio::registry::AnyOptions;
use devices::virtio::spec::DeviceOptions;
use devices::watchdog::WatchdogAction;
use serde::de::IntoDeserializer;
use serde::de::value::StrDeserializer;
use serde::{Deserialize, Serialize};

/// A whole machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachinePlan {
    /// Version of the hardware that the guest sees.
    pub version: MachineVersion,
    /// `namespace/name` of the VMI, for logs.
    pub name: String,
    /// Who it is to its guest.
    pub identity: IdentityPlan,
    /// vCPUs.
    pub cpu: CpuPlan,
    /// What its clock shows when the guest looks at it first.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clock: ClockPlan,
    /// Guest RAM.
    pub memory: MemoryPlan,
    /// What it starts with.
    pub boot: BootPlan,
    /// Devices on the PCI bus, in any order.
    pub devices: Vec<DevicePlan>,
    /// Devices of the host, on the same bus.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_devices: Vec<HostDevicePlan>,
    /// A watchdog, on the same bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogPlan>,
    /// Device numbers on the bus, 1 to 31, for devices that come and go while the machine runs; the first
    /// is taken first. One that is there from the start may go, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hotplug_slots: Vec<u8>,
    /// Which CPUs its threads run on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub placement: PlacementPlan,
    /// NUMA nodes that the guest sees; all vCPUs and all RAM are in one of them, or there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodePlan>,
    /// Create the machine but leave it paused (`startStrategy: Paused`).
    pub start_paused: bool,
}

impl MachinePlan {
    /// Slots for devices that come, in which nothing is yet.
    pub fn free_slots(&self) -> usize {
        let is_taken = |slot: &u8| self.devices.iter().any(|it| it.pci_slot == *slot);
        let slots = self.hotplug_slots.iter();
        slots.filter(|slot| !is_taken(slot)).count()
    }

    /// The guest's address, where it has a vsock device and the address is known.
    pub fn vsock_cid(&self) -> Option<u32> {
        self.devices
            .iter()
            .find_map(|device| match &device.options {
                AnyOptions::Vsock(options) => options.guest_cid,
                _ => None,
            })
    }

    /// File descriptors that its vm process may have open at a time.
    pub fn descriptors(&self) -> u64 {
        let devices = self.devices.iter().map(|device| {
            let queues = u64::from(device.options.queues());
            DEVICE_DESCRIPTORS + QUEUE_DESCRIPTORS * queues
        });
        let later = DEVICE_DESCRIPTORS + QUEUE_DESCRIPTORS * LATER_QUEUES;
        let later = later * self.free_slots() as u64;
        let host_devices = HOST_DEVICE_DESCRIPTORS * self.host_devices.len() as u64;
        let vcpus = VCPU_DESCRIPTORS * u64::from(self.cpu.count());
        let all = BASE_DESCRIPTORS + vcpus + devices.sum::<u64>() + later + host_devices;
        all.next_multiple_of(DESCRIPTOR_STEP)
    }

    /// Threads that its vm process may have at a time.
    pub fn threads(&self) -> u64 {
        let workers = (self.devices.iter()).map(|device| u64::from(device.options.workers()));
        let later = self.free_slots() as u64;
        BASE_THREADS + u64::from(self.cpu.count()) + workers.sum::<u64>() + later
    }
}

/// Descriptors of a machine without vCPUs and devices: sockets, logs, the console and its clients, KVM, the
/// event loop, what comes with calls.
const BASE_DESCRIPTORS: u64 = 128;

/// The event loop, the steward, the operator and a debugger's.
const BASE_THREADS: u64 = 4;

/// KVM's of the vCPU and of its statistics, and a clock.
const VCPU_DESCRIPTORS: u64 = 4;

/// What the host's side brings, the copy of it that the machine of this boot has, and the interrupt of the configuration.
const DEVICE_DESCRIPTORS: u64 = 8;

/// The device, its group and KVM's part, and for each interrupt of either kind (MSI has 32 at most) an event and, for a
/// moment, its copy.
const HOST_DEVICE_DESCRIPTORS: u64 = 8 + 2 * (MAX_VECTORS as u64 + 32);

/// Doorbell and interrupt; the worker's ring, poll set and wake.
const QUEUE_DESCRIPTORS: u64 = 5;

/// Queues of a device that comes later, as far as that is known.
const LATER_QUEUES: u64 = 8;

/// So that machines that are much alike have the same limit.
const DESCRIPTOR_STEP: u64 = 256;

/// What a guest sees beside what the rest of the plan says: tables, addresses, the order of devices, which
/// features of the host it is shown. A release that changes any of it adds a version and keeps the others for
/// the guests of snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineVersion {
    /// The first.
    #[default]
    #[serde(rename = "1")]
    V1,
}

impl MachineVersion {
    /// Whether a version of this name is one of them.
    pub fn is_known(name: &str) -> bool {
        let name: StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
        Self::deserialize(name).is_ok()
    }
}

/// Of a field that a plan leaves out then.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What SMBIOS tells the guest of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityPlan {
    /// Its UUID, in the order of RFC 9562.
    pub uuid: [u8; 16],
    /// Its serial number; may be empty.
    pub serial: String,
    /// Its case.
    pub chassis: ChassisPlan,
}

/// `spec.domain.chassis`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "SMBIOS has no more to say of them")]
pub struct ChassisPlan {
    pub manufacturer: Option<String>,
    pub version: Option<String>,
    pub serial: Option<String>,
    pub asset: Option<String>,
    pub sku: Option<String>,
}

/// What the battery-backed clock shows (`spec.domain.clock`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ClockPlan {
    /// So many seconds more than UTC.
    Utc(i64),
    /// Local time of a zone of the IANA database, by its name.
    TimeZone(String),
}

impl Default for ClockPlan {
    fn default() -> Self {
        Self::Utc(0)
    }
}

/// A watchdog (`spec.domain.devices.watchdog`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchdogPlan {
    /// Device number on the bus, 1 to 31.
    pub pci_slot: u8,
    /// What it does.
    pub action: WatchdogAction,
}

/// A PCI device of the host that the guest has to itself (`spec.domain.devices.hostDevices`, `gpus`, and NICs with
/// `sriov`), by VFIO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostDevicePlan {
    /// Its name, which no other device of the machine has.
    pub name: String,
    /// Device number on the bus, 1 to 31.
    pub pci_slot: u8,
}

/// Which of the pod's CPUs threads run on (`spec.domain.cpu`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlacementPlan {
    /// Each vCPU has one to itself.
    pub dedicated: bool,
    /// The other threads do not run on those.
    pub isolate_others: bool,
    /// Each vCPU and its RAM are of one NUMA node of the host, and the guest sees those nodes ([`MachinePlan::nodes`]).
    #[serde(default)]
    pub by_nodes: bool,
    /// Bit N: vCPU number N runs before all ordinary threads of its CPU. If there is one, RAM stays in memory.
    pub realtime: u64,
}

/// A NUMA node of the guest (`spec.domain.cpu.numa.guestMappingPassthrough`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePlan {
    /// How many vCPUs it has; those of the first node have the lowest numbers.
    pub vcpus: u32,
    /// Its RAM in bytes; that of the first node has the lowest addresses.
    pub bytes: u64,
    /// How far each node of the guest is, itself included, as ACPI's SLIT says it (10 is the node itself).
    pub distances: Vec<u8>,
    /// What it lies on.
    pub host: HostNode,
}

/// A NUMA node of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostNode {
    /// The kernel's number of it.
    pub number: u32,
    /// The pod's CPUs in it, ascending.
    pub cpus: Vec<u32>,
}

/// What a machine starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BootPlan {
    /// A Linux kernel; it and its initrd come as descriptors.
    Linux {
        /// Kernel command line.
        cmdline: String,
    },
    /// The kernel that is on a disk: the launcher reads it there, with its command line, for each boot.
    Disk,
    /// Firmware, which comes as a descriptor and finds by itself what there is to boot. No machine has what it
    /// needs yet: [`boot::load`](crate::arch::boot::load) refuses it.
    Firmware,
}

/// vCPU count and what CPUID shows. The count is `sockets * cores * threads`, 1 to 64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuPlan {
    /// Packages.
    pub sockets: u32,
    /// Cores in a package.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
    /// The processor by libvirt's name, if it is not the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Changes to the host's CPUID, or the model's, in order.
    pub features: Vec<CpuFeature>,
    /// What it says of the hypervisor.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hypervisor: HypervisorPlan,
}

/// What CPUID says of the hypervisor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HypervisorPlan {
    /// Nothing says that it is KVM (`features.kvm.hidden`).
    pub kvm_hidden: bool,
    /// KVM's clock is not offered (`clock.timer.kvm`).
    pub kvmclock_hidden: bool,
    /// Hyper-V's interface is there, too.
    pub hyperv: Option<HypervPlan>,
}

impl HypervisorPlan {
    /// The guest has no clock of KVM's.
    pub fn hides_clock(&self) -> bool {
        self.kvm_hidden || self.kvmclock_hidden
    }
}

/// Hyper-V's interface as far as KVM has it (`features.hyperv`, `clock.timer.hyperv`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HypervPlan {
    /// What of it; what the host's KVM lacks is left out.
    pub enlightenments: Vec<Enlightenment>,
    /// How often to try a lock before the hypervisor is told; never if not set.
    pub spinlock_retries: Option<u32>,
    /// Whose hypervisor it is, at most [`MAX_VENDOR_ID`] ASCII characters; Microsoft's if not set.
    pub vendor_id: Option<String>,
}

/// Longest name of a hypervisor's vendor, bytes: three registers.
pub const MAX_VENDOR_ID: usize = 12;

/// Parts of Hyper-V's interface, by libvirt's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    missing_docs,
    reason = "the registers of each are in arch::cpu::hyperv"
)]
pub enum Enlightenment {
    Frequencies,
    Ipi,
    Reenlightenment,
    Relaxed,
    Runtime,
    Time,
    TlbFlush,
    Vapic,
    VpIndex,
}

impl CpuPlan {
    /// Number of vCPUs.
    pub fn count(&self) -> u32 {
        self.sockets * self.cores * self.threads
    }
}

/// One entry of `domain.cpu.features`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuFeature {
    /// libvirt's name of the feature, e.g. `cx16`: each architecture has a table of those that it knows.
    pub name: String,
    /// What to do with it.
    pub policy: FeaturePolicy,
}

/// Policies of `domain.cpu.features[].policy` (libvirt's `<feature policy=…>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FeaturePolicy {
    /// Set the bit whatever the host says.
    Force,
    /// Fail unless the host has it.
    Require,
    /// Leave it as the host has it.
    Optional,
    /// Clear the bit.
    Disable,
    /// Fail if the host has it.
    Forbid,
}

impl std::fmt::Display for FeaturePolicy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Force => "force",
            Self::Require => "require",
            Self::Optional => "optional",
            Self::Disable => "disable",
            Self::Forbid => "forbid",
        })
    }
}

/// Guest RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryPlan {
    /// Size in bytes, a multiple of the page size used.
    pub bytes: u64,
    /// Huge page size in bytes (2 MiB or 1 GiB), or ordinary pages.
    pub hugepage_size: Option<u64>,
}

/// One device on the PCI bus; the host's side of it comes as descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DevicePlan {
    /// Its name, which no other device of the machine has: that of the disk or interface in the VMI.
    pub name: String,
    /// Device number on the bus, 1 to 31.
    pub pci_slot: u8,
    /// Number by which the guest may name it (PCI Firmware 3.3, 4.6.7: systemd's `eno3`), if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acpi_index: Option<u16>,
    /// What kind it is, and what that kind wants to know.
    pub options: AnyOptions,
}
