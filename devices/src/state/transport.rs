//! What every virtio PCI function has to remember, besides its device's own state.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

use super::{Saved, State};

/// A virtio device with its transport.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FunctionState {
    /// PCI configuration space.
    pub config: ConfigSpaceState,
    /// The common configuration structure.
    pub registers: RegistersState,
    /// Vectors, ISR and generation.
    pub interrupts: InterruptsState,
    /// The MSI-X table.
    pub msix: MsixState,
    /// The device behind it.
    pub device: Saved,
}

impl State for FunctionState {
    const KIND: &'static str = "virtio-pci";
    const VERSION: u32 = 1;
}

/// PCI configuration space (PCI 3.0, 6.1): command, BAR, MSI-X control and what else is writable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigSpaceState {
    /// The first 256 bytes.
    pub bytes: Vec<u8>,
    /// The driver has taken bus mastering away.
    pub silenced: bool,
}

/// The common configuration structure (virtio 1.2, 4.1.4.3), less what [`InterruptsState`] has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistersState {
    /// Features that the driver accepted.
    pub accepted: u64,
    /// `device_feature_select`.
    pub device_select: u32,
    /// `driver_feature_select`.
    pub driver_select: u32,
    /// `device_status`, less `DEVICE_NEEDS_RESET`.
    pub status: u8,
    /// `queue_select`.
    pub queue_select: u16,
    /// All queues of the device, enabled or not.
    pub queues: Vec<QueueRegistersState>,
}

/// One virtqueue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueueRegistersState {
    /// Configuration and indices.
    #[serde(with = "QueueFields")]
    pub queue: QueueState,
    /// Addresses that the driver wrote and that break their alignment: descriptor table, available
    /// ring, used ring.
    pub refused: [Option<u64>; 3],
}

/// The fields of `virtio_queue`'s state, which does not know serde.
#[derive(Serialize, Deserialize)]
#[serde(remote = "QueueState", rename_all = "camelCase", deny_unknown_fields)]
struct QueueFields {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

/// Which vector is whose, and what is pending without one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InterruptsState {
    /// `config_msix_vector`.
    pub config_vector: u16,
    /// `queue_msix_vector` of each queue.
    pub queue_vectors: Vec<u16>,
    /// ISR status.
    pub isr: u8,
    /// `config_generation`.
    pub generation: u8,
    /// The device waits for a reset.
    pub needs_reset: bool,
}

/// MSI-X (PCI 3.0, 6.8.2). Message control is in [`ConfigSpaceState`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MsixState {
    /// The table's entries.
    pub table: Vec<[u8; 16]>,
    /// Vectors with a message pending.
    pub pending: Vec<u16>,
}
