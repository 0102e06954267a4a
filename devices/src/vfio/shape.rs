//! What a device has, as its configuration space tells it when it is opened (PCI 3.0, 6; PCI Express 3.0, 7).

use std::ops::Range;

use super::MAX_VECTORS;
use crate::pci::{BARS, msix};

/// Where the standard header's capabilities may lie.
const CAPABILITIES: Range<u16> = 0x40..0x100;
/// Where the extended ones begin.
const EXTENDED: u16 = 0x100;
/// More capabilities do not fit, so whoever meets more goes in a circle.
const MAX_CAPABILITIES: usize = 48;
const MAX_EXTENDED: usize = (4096 - EXTENDED as usize) / 8;

const HEADER_TYPE: u16 = 0x0e;
const BAR: u16 = 0x10;
const CAPABILITIES_POINTER: u16 = 0x34;
const INTERRUPT_PIN: u16 = 0x3d;
const STATUS: u16 = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;

const CAP_POWER: u8 = 0x01;
const CAP_MSI: u8 = 0x05;
const CAP_MSIX: u8 = 0x11;

/// Extended capabilities that a guest does not see: other functions, virtual functions, sizes of BARs, all of which are
/// the host's.
const HIDDEN: [u16; 5] = [
    0x0e, // alternative routing-ID interpretation
    0x10, // single root I/O virtualization
    0x15, // resizable BAR
    0x24, // the same of virtual functions
    0x11, // multi-root I/O virtualization
];

/// A memory BAR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bar {
    /// Bytes, a power of two; 0 where there is none.
    pub(super) size: u64,
    /// Two registers.
    pub(super) is_wide: bool,
    pub(super) is_prefetchable: bool,
}

/// An MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsixShape {
    pub(super) offset: u16,
    /// Those that a guest sees.
    pub(super) vectors: u16,
    /// BAR with the table.
    pub(super) bar: usize,
    /// Where in it.
    pub(super) table: u32,
    /// Bytes of the device's own table.
    pub(super) len: u32,
}

/// An MSI capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsiShape {
    pub(super) offset: u16,
    /// Message control as the device has it.
    pub(super) control: u16,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) bars: [Bar; BARS],
    pub(super) msix: Option<MsixShape>,
    pub(super) msi: Option<MsiShape>,
    /// Power management.
    pub(super) power: Option<u16>,
    /// Extended capabilities that are not the guest's.
    pub(super) hidden: Vec<u16>,
    /// It has a pin.
    pub(super) has_pin: bool,
    /// It is no endpoint.
    pub(super) is_bridge: bool,
}

impl Shape {
    /// Of a device with a configuration space of `len` bytes that `read` reads a dword of, and BARs of these sizes.
    pub(super) fn read(len: u64, sizes: [u64; BARS], read: impl Fn(u16) -> u32) -> Self {
        let byte = |offset: u16| (read(offset & !3) >> (offset % 4 * 8)) as u8;
        let word = |offset: u16| (read(offset & !3) >> (offset % 4 * 8)) as u16;
        let mut shape = Self {
            bars: bars(sizes, &read),
            is_bridge: byte(HEADER_TYPE) & 0x7f != 0,
            has_pin: byte(INTERRUPT_PIN) != 0,
            ..Self::default()
        };
        if word(STATUS) & STATUS_CAPABILITIES != 0 {
            let mut at = u16::from(byte(CAPABILITIES_POINTER) & !3);
            for _ in 0..MAX_CAPABILITIES {
                if !CAPABILITIES.contains(&at) {
                    break;
                }
                shape.take_capability(at, &read);
                at = u16::from(byte(at + 1) & !3);
            }
        }
        shape.hidden = hidden(len, &read);
        shape
    }

    fn take_capability(&mut self, offset: u16, read: impl Fn(u16) -> u32) {
        let head = read(offset);
        let control = (head >> 16) as u16;
        match head as u8 {
            CAP_POWER => self.power = Some(offset),
            CAP_MSI => self.msi = Some(MsiShape { offset, control }),
            CAP_MSIX if offset + 8 < CAPABILITIES.end => {
                let table = read(offset + 4);
                let vectors = (control & 0x7ff) + 1;
                let shape = MsixShape {
                    offset,
                    vectors: vectors.min(MAX_VECTORS),
                    bar: (table & 7) as usize,
                    table: table & !7,
                    len: u32::from(vectors) * msix::ENTRY as u32,
                };
                let end = u64::from(shape.table) + u64::from(shape.len);
                let is_there = |bar: &Bar| end <= bar.size;
                if self.bars.get(shape.bar).is_some_and(is_there) {
                    self.msix = Some(shape);
                }
            }
            _ => {}
        }
    }

    /// The pages of a BAR that have the device's table, which a guest never reaches.
    pub(super) fn table_pages(&self, bar: usize) -> Range<u64> {
        const PAGE: u64 = 4096;
        let Some(msix) = self.msix.filter(|msix| msix.bar == bar) else {
            return 0..0;
        };
        let end = u64::from(msix.table) + u64::from(msix.len);
        u64::from(msix.table) / PAGE * PAGE..end.next_multiple_of(PAGE)
    }
}

fn bars(sizes: [u64; BARS], read: impl Fn(u16) -> u32) -> [Bar; BARS] {
    const IO: u32 = 1;
    const TYPE: u32 = 0b110;
    const WIDE: u32 = 0b100;
    const PREFETCHABLE: u32 = 0b1000;
    std::array::from_fn(|bar| {
        let value = read(BAR + bar as u16 * 4);
        let is_wide = value & TYPE == WIDE;
        let is_whole = sizes[bar].is_power_of_two() && sizes[bar] >= 16;
        let fits = match is_wide {
            true => bar + 1 < BARS,
            false => sizes[bar] < 1 << 32,
        };
        if value & IO != 0 || !is_whole || !fits {
            return Bar::default();
        }
        Bar {
            size: sizes[bar],
            is_wide,
            is_prefetchable: value & PREFETCHABLE != 0,
        }
    })
}

fn hidden(len: u64, read: impl Fn(u16) -> u32) -> Vec<u16> {
    let mut hidden = Vec::new();
    let mut at = EXTENDED;
    for _ in 0..MAX_EXTENDED {
        if at < EXTENDED || u64::from(at) + 4 > len {
            break;
        }
        let head = read(at);
        if HIDDEN.contains(&(head as u16)) {
            hidden.push(at);
        }
        at = (head >> 20) as u16 & !3;
    }
    hidden
}
