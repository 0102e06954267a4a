//! The virtio-mmio transport, for peers without PCI. Devices are found the Linux way:
//! `virtio_mmio.device=SIZE@ADDR:IRQ` words, which those VMMs put on the command line.

use super::queue::Queue;
use crate::cmdline::{Cmdline, parse_number};
use crate::{paging, phys};

const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SELECT: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SELECT: u64 = 0x024;
const QUEUE_SELECT: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const STATUS: u64 = 0x070;
const QUEUE_DESC: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const CONFIG: u64 = 0x100;

/// A device's registers.
#[derive(Clone, Copy)]
pub struct Transport {
    base: u64,
}

/// The devices that the command line names and that are there.
pub fn discover(cmdline: &Cmdline) -> impl Iterator<Item = (u16, Transport)> {
    cmdline
        .words()
        .filter_map(|word| word.strip_prefix("virtio_mmio.device="))
        .filter_map(|value| {
            value
                .split_once('@')?
                .1
                .split(':')
                .next()
                .and_then(parse_number)
        })
        .filter_map(|base| {
            paging::map(base, 0x1000);
            let known = phys::r32(base + MAGIC) == 0x7472_6976 && phys::r32(base + VERSION) == 2;
            let kind = phys::r32(base + DEVICE_ID) as u16;
            (known && kind != 0).then_some((kind, Transport { base }))
        })
}

impl Transport {
    pub(super) fn status(&self) -> u8 {
        phys::r32(self.base + STATUS) as u8
    }

    pub(super) fn set_status(&self, status: u8) {
        phys::w32(self.base + STATUS, status.into());
    }

    pub(super) fn status_address(&self) -> u64 {
        self.base + STATUS
    }

    pub(super) fn features(&self) -> u64 {
        let half = |select| {
            phys::w32(self.base + DEVICE_FEATURES_SELECT, select);
            u64::from(phys::r32(self.base + DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    pub(super) fn accept(&self, features: u64) {
        for select in 0..2 {
            phys::w32(self.base + DRIVER_FEATURES_SELECT, select);
            phys::w32(
                self.base + DRIVER_FEATURES,
                (features >> (32 * select)) as u32,
            );
        }
    }

    pub(super) fn queue_max(&self, index: u16) -> u16 {
        phys::w32(self.base + QUEUE_SELECT, index.into());
        phys::r32(self.base + QUEUE_NUM_MAX) as u16
    }

    pub(super) fn enable_queue(&self, queue: &mut Queue) {
        phys::w32(self.base + QUEUE_SELECT, queue.index.into());
        phys::w32(self.base + QUEUE_NUM, queue.size.into());
        for (register, addr) in [
            (QUEUE_DESC, queue.desc),
            (QUEUE_DRIVER, queue.avail),
            (QUEUE_DEVICE, queue.used),
        ] {
            phys::w32(self.base + register, addr as u32);
            phys::w32(self.base + register + 4, (addr >> 32) as u32);
        }
        queue.notify = self.base + QUEUE_NOTIFY;
        queue.notify_width = 4;
        phys::w32(self.base + QUEUE_READY, 1);
    }

    pub(super) fn config(&self) -> u64 {
        self.base + CONFIG
    }
}
