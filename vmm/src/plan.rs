//! What the machine is to be: plain validated data, made by the launcher, without paths or
//! descriptors. Addresses, slots and vectors are a function of the plan.

use devices::pod_net::dhcp::DhcpLease;
use devices::pod_net::ipv6::Ipv6Lease;
pub use devices::virtio::block::CacheMode;
use serde::{Deserialize, Serialize};

/// A whole machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachinePlan {
    /// `namespace/name` of the VMI, for logs.
    pub name: String,
    /// vCPUs.
    pub cpu: CpuPlan,
    /// Guest RAM.
    pub memory: MemoryPlan,
    /// What it starts with.
    pub boot: BootPlan,
    /// Disks in PCI slot order.
    pub disks: Vec<DiskPlan>,
    /// NICs in PCI slot order, after the disks, unless they name a slot.
    pub nics: Vec<NicPlan>,
    /// A virtio-rng device.
    pub rng: bool,
    /// Create the machine but leave it paused (`startStrategy: Paused`).
    pub start_paused: bool,
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
    /// Firmware, which finds its operating system on a disk.
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
    /// Changes to the host's CPUID, in order.
    pub features: Vec<CpuFeature>,
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
    /// libvirt's name of the feature, e.g. `cx16`; see [`crate::cpu::features`].
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

/// One virtio-blk disk; its image comes as a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskPlan {
    /// Name of the disk and its volume in the VMI.
    pub name: String,
    /// Serial number, at most 20 bytes.
    pub serial: Option<String>,
    /// Refuse writes.
    pub read_only: bool,
    /// Cache mode; the descriptor was opened with O_DIRECT when `None`.
    pub cache: CacheMode,
    /// Logical block size in bytes, a power of two from 512 to 4096.
    pub logical_block_size: u32,
    /// Physical block size in bytes, at least the logical one.
    pub physical_block_size: u32,
    /// Granularity of discards in bytes; the logical block size if unset.
    pub discard_granularity: Option<u32>,
    /// Offer DISCARD and WRITE_ZEROES with unmap.
    pub discard: bool,
    /// Request queues, 1 to 64.
    pub queues: u16,
}

/// One virtio-net NIC; its TAP queues come as descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NicPlan {
    /// Name of the interface in the VMI.
    pub name: String,
    /// MAC address of the guest.
    pub mac: [u8; 6],
    /// MTU offered to the guest.
    pub mtu: u16,
    /// Queue pairs, 1 to 64; one TAP descriptor each.
    pub queue_pairs: u16,
    /// Link state at start.
    pub link_up: bool,
    /// Device number on the PCI bus, 1 to 31; the next free one if unset.
    pub pci_slot: Option<u8>,
    /// What the guest's DHCP client is told; `None` leaves DHCP to the network.
    pub lease: Option<DhcpLease>,
    /// What the guest is told by DHCPv6 and router advertisements; `None` leaves both to the network.
    pub lease6: Option<Ipv6Lease>,
    /// Drop what the guest sends under another MAC address than its own.
    pub spoof_check: bool,
}
