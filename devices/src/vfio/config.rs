//! Configuration space as a guest sees it: what decides over addresses, interrupts and power is kept here, the rest is the
//! device's, as far as the kernel lets a guest have it.

use super::msi::Msi;
use super::shape::{MsixShape, Shape};
use crate::pci::BARS;

const COMMAND: u16 = 0x04;
const COMMAND_IO: u16 = 1;
const COMMAND_MEMORY: u16 = 1 << 1;
/// With the cache line size, the header type and the self test.
const CACHE_LINE: u16 = 0x0c;
const HEADER_MULTIFUNCTION: u32 = 0x80 << 16;
const SELF_TEST: u32 = 0xff << 24;
const BAR: u16 = 0x10;
const BARS_END: u16 = BAR + 4 * BARS as u16;
const EXPANSION_ROM: u16 = 0x30;
const INTERRUPT_LINE: u16 = 0x3c;
/// Line and pin.
const INTERRUPTS: u32 = 0xffff;

/// Message control of MSI-X that a guest writes: enable, mask all.
const MSIX_WRITABLE: u16 = 0b11 << 14;
const MSIX_ENABLE: u16 = 1 << 15;

/// Power state in the control register of power management, 4 bytes into the capability.
const POWER_STATE: u32 = 0b11;
/// What wakes is not a guest's to say.
const POWER_EVENTS: u32 = 1 << 8 | 1 << 15;

/// The interrupts that a guest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interrupts {
    Msi { vectors: u16 },
    Msix { vectors: u16 },
}

/// What a write comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// The device is to have it, too: these bytes.
    pub(super) passed: Option<[u8; 4]>,
    /// BARs may be elsewhere.
    pub(super) decoding: bool,
    /// Interrupts may be others.
    pub(super) interrupts: bool,
}

/// The registers that are kept here.
pub(super) struct Config {
    shape: Shape,
    /// Of the command register, the bits for memory.
    command: u16,
    bars: [u64; BARS],
    msix_control: u16,
    msi: Option<Msi>,
    power_state: u32,
}

impl Config {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            msi: shape.msi.map(Msi::new),
            shape,
            command: 0,
            bars: [0; BARS],
            msix_control: 0,
            power_state: 0,
        }
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The MSI capability.
    pub(super) fn msi(&self) -> Option<&Msi> {
        self.msi.as_ref()
    }

    /// Message control of MSI-X.
    pub(super) fn msix_control(&self) -> u16 {
        self.msix_control
    }

    /// The address that firmware gives a BAR.
    pub(super) fn set_bar(&mut self, bar: usize, base: u64) {
        self.bars[bar] = base;
    }

    /// Where a BAR is decoded now.
    pub(super) fn decoded(&self, bar: usize) -> Option<u64> {
        let Self { shape, bars, .. } = self;
        let is_on = self.command & COMMAND_MEMORY != 0 && self.power_state == 0;
        // While a guest asks for its size a BAR has an address that it cannot have.
        let fits = |base: &u64| *base != 0 && base.checked_add(shape.bars[bar].size).is_some();
        (is_on && shape.bars[bar].size != 0)
            .then_some(bars[bar])
            .filter(fits)
    }

    /// The interrupts that the guest has enabled; with both kinds on, MSI-X.
    pub(super) fn interrupts(&self) -> Option<Interrupts> {
        let msix = self.shape.msix;
        match msix.filter(|_| self.msix_control & MSIX_ENABLE != 0) {
            Some(MsixShape { vectors, .. }) => Some(Interrupts::Msix { vectors }),
            None => {
                let vectors = self.msi.as_ref().and_then(Msi::enabled)?;
                Some(Interrupts::Msi { vectors })
            }
        }
    }

    /// The dword at `offset`, where the device has `value`.
    pub(super) fn read(&self, offset: u16, value: u32) -> u32 {
        let shape = &self.shape;
        match offset {
            COMMAND => {
                let kept = COMMAND_IO | COMMAND_MEMORY;
                value & !u32::from(kept) | u32::from(self.command)
            }
            CACHE_LINE => value & !(HEADER_MULTIFUNCTION | SELF_TEST),
            BAR..BARS_END => self.read_bar(usize::from((offset - BAR) / 4)),
            EXPANSION_ROM => 0,
            INTERRUPT_LINE => value & !INTERRUPTS,
            _ if shape.msix.is_some_and(|msix| msix.offset == offset) => {
                let vectors = shape.msix.map_or(1, |msix| msix.vectors);
                let control = self.msix_control | (vectors - 1);
                value & 0xffff | u32::from(control) << 16
            }
            _ if shape.power.is_some_and(|power| power + 4 == offset) => {
                value & !(POWER_STATE | POWER_EVENTS) | self.power_state
            }
            _ if shape.hidden.contains(&offset) => value & 0xfff0_0000,
            _ => match &self.msi {
                Some(msi) if msi.has(offset) => msi.read(offset, value),
                _ => value,
            },
        }
    }

    /// Writes the bits `bits` of the dword at `offset`, `value`.
    pub(super) fn write(&mut self, offset: u16, value: u32, bits: u32) -> Written {
        let shape = &self.shape;
        let merge = |old: u32| old & !bits | value & bits;
        match offset {
            COMMAND => {
                self.command = merge(self.command.into()) as u16 & COMMAND_MEMORY;
                let passed = value & !u32::from(COMMAND_IO);
                Written {
                    passed: Some(passed.to_le_bytes()),
                    decoding: true,
                    ..Written::default()
                }
            }
            BAR..BARS_END => {
                self.write_bar(usize::from((offset - BAR) / 4), merge);
                Written {
                    decoding: true,
                    ..Written::default()
                }
            }
            CACHE_LINE | EXPANSION_ROM | INTERRUPT_LINE => Written::default(),
            _ if shape.msix.is_some_and(|msix| msix.offset == offset) => {
                let control = merge(u32::from(self.msix_control) << 16) >> 16;
                self.msix_control = control as u16 & MSIX_WRITABLE;
                Written {
                    interrupts: true,
                    ..Written::default()
                }
            }
            // It stays awake: what it had would be lost to who lends it.
            _ if shape.power.is_some_and(|power| power + 4 == offset) => {
                self.power_state = merge(self.power_state) & POWER_STATE;
                Written {
                    decoding: true,
                    ..Written::default()
                }
            }
            _ => match &mut self.msi {
                Some(msi) if msi.has(offset) => {
                    msi.write(offset, value, bits);
                    Written {
                        interrupts: true,
                        ..Written::default()
                    }
                }
                _ => Written {
                    passed: Some(value.to_le_bytes()),
                    ..Written::default()
                },
            },
        }
    }

    /// The BAR that register number `register` belongs to, and whether the register is its upper half.
    fn bar_of(&self, register: usize) -> (usize, bool) {
        let below = register.wrapping_sub(1);
        let is_upper = (self.shape.bars.get(below)).is_some_and(|bar| bar.size > 0 && bar.is_wide);
        match is_upper {
            true => (below, true),
            false => (register, false),
        }
    }

    fn read_bar(&self, register: usize) -> u32 {
        let (bar, is_upper) = self.bar_of(register);
        let shape = self.shape.bars[bar];
        if is_upper {
            return (self.bars[bar] >> 32) as u32;
        }
        if shape.size == 0 {
            return 0;
        }
        let kind = u32::from(shape.is_wide) << 2 | u32::from(shape.is_prefetchable) << 3;
        self.bars[bar] as u32 | kind
    }

    fn write_bar(&mut self, register: usize, merge: impl Fn(u32) -> u32) {
        let (bar, is_upper) = self.bar_of(register);
        let (size, base) = (self.shape.bars[bar].size, self.bars[bar]);
        if size == 0 {
            return;
        }
        let written = match is_upper {
            true => base & 0xffff_ffff | u64::from(merge((base >> 32) as u32)) << 32,
            false => base >> 32 << 32 | u64::from(merge(base as u32)),
        };
        self.bars[bar] = written & !(size - 1);
    }
}
