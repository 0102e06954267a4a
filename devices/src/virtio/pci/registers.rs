//! The common configuration structure (virtio 1.2, 4.1.4.3) and the status rules (2.1, 3.1).

use std::collections::BTreeMap;

use virtio_queue::{Error as QueueError, QueueState};

use crate::state::RestoreError;
use crate::state::transport::{FunctionState, RegistersState};
use crate::virtio::pci::interrupts::Interrupts;
use crate::virtio::pci::queue_registers::QueueRegisters;
use crate::virtio::queue::{Part, QueueSetup, QueueSetupError};

/// `VIRTIO_F_INDIRECT_DESC`.
const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
const F_VERSION_1: u64 = 1 << 32;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;

/// Offsets of the fields.
const DEVICE_FEATURE_SELECT: usize = 0x00;
const DEVICE_FEATURE: usize = 0x04;
const DRIVER_FEATURE_SELECT: usize = 0x08;
const DRIVER_FEATURE: usize = 0x0c;
const CONFIG_MSIX_VECTOR: usize = 0x10;
const NUM_QUEUES: usize = 0x12;
const DEVICE_STATUS: usize = 0x14;
const CONFIG_GENERATION: usize = 0x15;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_SIZE: usize = 0x18;
const QUEUE_MSIX_VECTOR: usize = 0x1a;
const QUEUE_ENABLE: usize = 0x1c;
const QUEUE_NOTIFY_OFF: usize = 0x1e;
const QUEUE_DESC: usize = 0x20;
const QUEUE_DRIVER: usize = 0x28;
const QUEUE_DEVICE: usize = 0x30;
/// The 64-bit fields that say where a queue is.
const ADDRESSES: [(usize, Part); 3] = [
    (QUEUE_DESC, Part::Descriptors),
    (QUEUE_DRIVER, Part::Available),
    (QUEUE_DEVICE, Part::Used),
];
const QUEUE_NOTIFY_DATA: usize = 0x38;
/// After `queue_reset`, which stays zero: `VIRTIO_F_RING_RESET` is not offered.
const END: usize = 0x3c;

/// What a write asks the transport to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Reset,
    Activate,
}

/// The registers, less those that workers see (in [`Interrupts`]).
pub(super) struct Registers {
    offered: u64,
    accepted: u64,
    device_select: u32,
    driver_select: u32,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

impl Registers {
    /// Registers of a device that offers `features` besides those of the ring.
    /// Fails at a size that no queue can have.
    pub(super) fn new(features: u64, queue_sizes: &[u16]) -> Result<Self, QueueError> {
        let queues = queue_sizes.iter().map(|&size| QueueRegisters::new(size));
        Ok(Self {
            offered: features | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            status: 0,
            queue_select: 0,
            queues: queues.collect::<Result<_, _>>()?,
        })
    }

    /// Back to the state after power-on.
    pub(super) fn reset(&mut self) {
        self.accepted = 0;
        self.device_select = 0;
        self.driver_select = 0;
        self.status = 0;
        self.queue_select = 0;
        self.queues.iter_mut().for_each(QueueRegisters::reset);
    }

    /// What a snapshot keeps; `live` are numbers and states of the queues in use.
    pub(super) fn save(&self, live: &BTreeMap<u16, QueueState>) -> RegistersState {
        let numbered = (0u16..).zip(&self.queues);
        RegistersState {
            accepted: self.accepted,
            device_select: self.device_select,
            driver_select: self.driver_select,
            status: self.status,
            queue_select: self.queue_select,
            queues: numbered
                .map(|(index, queue)| queue.save(live.get(&index).copied()))
                .collect(),
        }
    }

    /// Takes over saved registers, if a driver can have brought this device to them.
    pub(super) fn restore(&mut self, saved: &RegistersState) -> Result<(), RestoreError> {
        let unfit = |what: String| Err(RestoreError::unfit::<FunctionState>(what));
        let (found, mine) = (saved.queues.len(), self.queues.len());
        if found != mine {
            return unfit(format!("{found} queues instead of {mine}"));
        }
        self.accepted = saved.accepted;
        if !is_reachable(saved.status) {
            return unfit(format!("device status {:#x}", saved.status));
        }
        if saved.status & FEATURES_OK != 0 && !self.features_fit() {
            let foreign = saved.accepted & !self.offered;
            return unfit(format!("features {foreign:#x}, which are not offered here"));
        }
        self.status = saved.status;
        self.device_select = saved.device_select;
        self.driver_select = saved.driver_select;
        self.queue_select = saved.queue_select;
        let mut queues = self.queues.iter_mut().zip(&saved.queues);
        queues.try_for_each(|(queue, saved)| queue.restore(saved))
    }

    /// Features that the driver accepted.
    pub(super) fn features(&self) -> u64 {
        self.accepted
    }

    /// The driver uses the device.
    pub(super) fn is_live(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// The queues that the driver enabled, with their numbers.
    pub(super) fn enabled_queues(
        &self,
    ) -> impl Iterator<Item = (u16, Result<QueueSetup, QueueSetupError>)> + '_ {
        let indirect = self.accepted & F_INDIRECT_DESC != 0;
        let numbered = (0u16..)
            .zip(&self.queues)
            .filter(|(_, queue)| queue.is_enabled());
        numbered.map(move |(index, queue)| {
            let setup = queue.state().map(|state| QueueSetup { state, indirect });
            (index, setup)
        })
    }

    /// Fills `data` from the structure at `offset`; past its end there are zeros.
    pub(super) fn read(&self, offset: u32, data: &mut [u8], interrupts: &Interrupts) {
        let image = self.image(interrupts);
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    fn image(&self, interrupts: &Interrupts) -> [u8; END] {
        let mut image = [0; END];
        let mut put = |at: usize, data: &[u8]| image[at..at + data.len()].copy_from_slice(data);
        put(DEVICE_FEATURE_SELECT, &self.device_select.to_le_bytes());
        put(
            DEVICE_FEATURE,
            &half(self.offered, self.device_select).to_le_bytes(),
        );
        put(DRIVER_FEATURE_SELECT, &self.driver_select.to_le_bytes());
        put(
            DRIVER_FEATURE,
            &half(self.accepted, self.driver_select).to_le_bytes(),
        );
        put(
            CONFIG_MSIX_VECTOR,
            &interrupts.config_vector().to_le_bytes(),
        );
        put(NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        let failed = if interrupts.needs_reset() {
            NEEDS_RESET
        } else {
            0
        };
        put(DEVICE_STATUS, &[self.status | failed]);
        put(CONFIG_GENERATION, &[interrupts.generation()]);
        put(QUEUE_SELECT, &self.queue_select.to_le_bytes());
        put(
            QUEUE_MSIX_VECTOR,
            &interrupts.queue_vector(self.queue_select).to_le_bytes(),
        );
        // A queue that does not exist has size zero.
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(QUEUE_SIZE, &queue.size().to_le_bytes());
            put(QUEUE_ENABLE, &u16::from(queue.is_enabled()).to_le_bytes());
            put(QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            for (at, part) in ADDRESSES {
                put(at, &queue.address(part).to_le_bytes());
            }
            put(QUEUE_NOTIFY_DATA, &self.queue_select.to_le_bytes());
        }
        image
    }

    /// Writes one field, or one half of a 64-bit field. Anything else the driver may not write, or
    /// not now, is ignored.
    pub(super) fn write(
        &mut self,
        offset: u32,
        data: &[u8],
        interrupts: &Interrupts,
    ) -> Option<Action> {
        match (offset as usize, data) {
            (DEVICE_STATUS, &[value]) => return self.write_status(value),
            (at, &[a, b]) => self.write_u16(at, u16::from_le_bytes([a, b]), interrupts),
            (at, &[a, b, c, d]) => self.write_u32(at, u32::from_le_bytes([a, b, c, d])),
            (at, &[a, b, c, d, e, f, g, h]) if at >= QUEUE_DESC => {
                self.write_u32(at, u32::from_le_bytes([a, b, c, d]));
                self.write_u32(at + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        None
    }

    fn write_u16(&mut self, at: usize, value: u16, interrupts: &Interrupts) {
        match at {
            CONFIG_MSIX_VECTOR => interrupts.set_config_vector(value),
            QUEUE_SELECT => self.queue_select = value,
            QUEUE_MSIX_VECTOR => interrupts.set_queue_vector(self.queue_select, value),
            QUEUE_SIZE => {
                if let Some(queue) = self.writable_queue() {
                    queue.set_size(value);
                }
            }
            // The driver cannot disable a queue but by a reset.
            QUEUE_ENABLE if value == 1 && self.status & FEATURES_OK != 0 => {
                if let Some(queue) = self.writable_queue() {
                    queue.enable();
                }
            }
            _ => {}
        }
    }

    fn write_u32(&mut self, at: usize, value: u32) {
        match at {
            DEVICE_FEATURE_SELECT => self.device_select = value,
            DRIVER_FEATURE_SELECT => self.driver_select = value,
            DRIVER_FEATURE if self.status & FEATURES_OK == 0 => {
                set_half(&mut self.accepted, self.driver_select, value);
            }
            _ => self.write_address(at, value),
        }
    }

    fn write_address(&mut self, at: usize, value: u32) {
        let Some(queue) = self.writable_queue() else {
            return;
        };
        let Some(&(_, part)) = ADDRESSES.iter().find(|&&(field, _)| field == at & !7) else {
            return;
        };
        let mut address = queue.address(part);
        match at & 7 {
            0 => set_half(&mut address, 0, value),
            4 => set_half(&mut address, 1, value),
            _ => return,
        }
        queue.set_address(part, address);
    }

    /// The selected queue, if its registers may change now.
    fn writable_queue(&mut self) -> Option<&mut QueueRegisters> {
        let live = self.is_live();
        let queue = self.queues.get_mut(usize::from(self.queue_select))?;
        (!live && !queue.is_enabled()).then_some(queue)
    }

    /// The driver only ever adds bits, or writes zero to reset (2.1.1).
    fn write_status(&mut self, value: u8) -> Option<Action> {
        if value == 0 {
            return Some(Action::Reset);
        }
        if value & self.status != self.status {
            return None;
        }
        let added = value & !self.status;
        self.status |= added & (ACKNOWLEDGE | DRIVER | FAILED);
        if added & FEATURES_OK != 0 && self.status & DRIVER != 0 && self.features_fit() {
            self.status |= FEATURES_OK;
            let event_idx = self.accepted & F_EVENT_IDX != 0;
            let queues = self.queues.iter_mut();
            queues.for_each(|queue| queue.set_event_idx(event_idx));
        }
        if added & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 {
            self.status |= DRIVER_OK;
            return Some(Action::Activate);
        }
        None
    }

    fn features_fit(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & F_VERSION_1 != 0
    }
}

/// Whether drivers that keep to the order of steps get to `status` (3.1.1), or others do by
/// [`Registers::write_status`].
fn is_reachable(status: u8) -> bool {
    let known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;
    let after = |step, earlier| status & step == 0 || status & earlier != 0;
    status & !known == 0 && after(FEATURES_OK, DRIVER) && after(DRIVER_OK, FEATURES_OK)
}

/// The 32 bits of `value` that `select` names; there are only two pages.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}
