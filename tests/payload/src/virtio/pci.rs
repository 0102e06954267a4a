//! The virtio-pci transport, modern only.

use super::queue::Queue;
use crate::pci::{Bar, Function, Pci};
use crate::phys;

const VENDOR: u16 = 0x1af4;
const MODERN_BASE: u16 = 0x1040;
/// Transitional device IDs by virtio device number - 1; they have the modern registers too.
const TRANSITIONAL: [u16; 5] = [0x1000, 0x1001, 0x1003, 0x1005, 0x1002];
const CAP_VENDOR: u8 = 0x09;

/// Offsets in the common configuration structure.
pub mod common {
    #![allow(missing_docs, reason = "the names are those of the specification")]
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const LEN: u64 = 0x38;
}

/// A structure in a BAR.
#[derive(Clone, Copy, Debug, Default)]
pub struct Region {
    /// Address; 0 where the capability is missing.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
}

/// Where the structures of a function are.
#[derive(Clone, Copy)]
pub struct Transport {
    /// The PCI function.
    pub function: Function,
    /// Its BARs.
    pub bars: [Bar; 6],
    /// Common configuration.
    pub common: Region,
    /// Notification.
    pub notify: Region,
    /// Bytes between notification registers.
    pub notify_multiplier: u32,
    /// Interrupt status.
    pub isr: Region,
    /// Device configuration.
    pub device: Region,
}

/// Finds the structures of a virtio function and turns it on.
pub fn probe(pci: &Pci, function: Function) -> Option<(u16, Transport)> {
    let (vendor, device) = pci.id(function);
    let kind = match device {
        MODERN_BASE..=0x107f => device - MODERN_BASE,
        _ => TRANSITIONAL.iter().position(|&id| id == device)? as u16 + 1,
    };
    if vendor != VENDOR {
        return None;
    }
    let bars = pci.bars(function);
    let none = Region::default();
    let mut found = Transport {
        function,
        bars,
        common: none,
        notify: none,
        notify_multiplier: 0,
        isr: none,
        device: none,
    };
    for (_, cap) in pci
        .capabilities(function)
        .filter(|(id, _)| *id == CAP_VENDOR)
    {
        let bar = bars.get(pci.read(function, cap + 4, 1) as usize);
        let Some(bar) = bar.filter(|bar| bar.addr != 0) else {
            continue;
        };
        let region = Region {
            addr: bar.addr + u64::from(pci.read(function, cap + 8, 4)),
            len: pci.read(function, cap + 12, 4).into(),
        };
        match pci.read(function, cap + 3, 1) {
            1 => found.common = region,
            2 => {
                found.notify = region;
                found.notify_multiplier = pci.read(function, cap + 16, 4);
            }
            3 => found.isr = region,
            4 => found.device = region,
            _ => {}
        }
    }
    pci.enable(function);
    (found.common.addr != 0 && found.notify.addr != 0).then_some((kind, found))
}

impl Transport {
    pub(super) fn status(&self) -> u8 {
        phys::r8(self.status_address())
    }

    pub(super) fn set_status(&self, status: u8) {
        phys::w8(self.status_address(), status);
    }

    pub(super) fn status_address(&self) -> u64 {
        self.common.addr + common::DEVICE_STATUS
    }

    /// The features that the device offers.
    pub fn features(&self) -> u64 {
        let half = |select| {
            phys::w32(self.common.addr + common::DEVICE_FEATURE_SELECT, select);
            u64::from(phys::r32(self.common.addr + common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// Accepts features, offered or not.
    pub fn accept(&self, features: u64) {
        for select in 0..2 {
            phys::w32(self.common.addr + common::DRIVER_FEATURE_SELECT, select);
            phys::w32(
                self.common.addr + common::DRIVER_FEATURE,
                (features >> (32 * select)) as u32,
            );
        }
    }

    /// Number of queues.
    pub fn num_queues(&self) -> u16 {
        phys::r16(self.common.addr + common::NUM_QUEUES)
    }

    /// Size of a queue, 0 where there is none.
    pub fn queue_max(&self, index: u16) -> u16 {
        phys::w16(self.common.addr + common::QUEUE_SELECT, index);
        phys::r16(self.common.addr + common::QUEUE_SIZE)
    }

    /// Notification address of the selected queue.
    pub fn notify_address(&self) -> u64 {
        let offset = phys::r16(self.common.addr + common::QUEUE_NOTIFY_OFF);
        self.notify.addr + u64::from(offset) * u64::from(self.notify_multiplier)
    }

    pub(super) fn enable_queue(&self, queue: &mut Queue) {
        let base = self.common.addr;
        phys::w16(base + common::QUEUE_SELECT, queue.index);
        phys::w16(base + common::QUEUE_SIZE, queue.size);
        phys::w16(base + common::QUEUE_MSIX_VECTOR, queue.vector);
        let rings = [
            (common::QUEUE_DESC, queue.desc),
            (common::QUEUE_DRIVER, queue.avail),
            (common::QUEUE_DEVICE, queue.used),
        ];
        for (offset, addr) in rings {
            phys::w32(base + offset, addr as u32);
            phys::w32(base + offset + 4, (addr >> 32) as u32);
        }
        queue.notify = self.notify_address();
        phys::w16(base + common::QUEUE_ENABLE, 1);
    }

    pub(super) fn config(&self) -> u64 {
        self.device.addr
    }
}
