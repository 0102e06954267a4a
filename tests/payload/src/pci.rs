//! PCI configuration space, by ECAM where MCFG names one and by CF8/CFC, and BARs.

use crate::acpi::Ecam;
use crate::machine::Machine;
use crate::{cpu, paging, phys};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const HEADER_TYPE: u16 = 0x0e;
const BAR0: u16 = 0x10;
const CAPABILITIES: u16 = 0x34;
const STATUS_CAPABILITIES: u32 = 1 << 4;
/// Memory decoding and bus mastering.
const COMMAND_ON: u32 = 0b110;

/// One function of bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Device and function number, as in the ECAM address.
    pub devfn: u8,
}

/// A memory BAR.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bar {
    /// Address; 0 where there is none.
    pub addr: u64,
    /// Size in bytes.
    pub len: u64,
}

/// Number of BARs of a function.
pub const BARS: usize = 6;

/// Configuration space.
#[derive(Clone, Copy)]
pub struct Pci {
    ecam: Option<Ecam>,
}

impl Pci {
    /// The root bus of this machine.
    pub fn new(machine: &Machine) -> Self {
        if let Some(ecam) = machine.acpi.ecam {
            paging::map(ecam.base, 1 << 20);
        }
        Self {
            ecam: machine.acpi.ecam,
        }
    }

    /// Address of a function's configuration space in ECAM.
    pub fn ecam(&self, function: Function) -> Option<u64> {
        self.ecam
            .map(|ecam| ecam.base + (u64::from(function.devfn) << 12))
    }

    /// Reads `width` (1, 2, 4) bytes.
    pub fn read(&self, function: Function, offset: u16, width: u8) -> u32 {
        match self.ecam(function) {
            Some(base) => phys::load(base + u64::from(offset), width) as u32,
            None => {
                select(function, offset);
                cpu::input(CONFIG_DATA + (offset & 3), width)
            }
        }
    }

    /// Writes `width` (1, 2, 4) bytes.
    pub fn write(&self, function: Function, offset: u16, width: u8, value: u32) {
        match self.ecam(function) {
            Some(base) => phys::store(base + u64::from(offset), width, value.into()),
            None => {
                select(function, offset);
                cpu::out(CONFIG_DATA + (offset & 3), width, value);
            }
        }
    }

    /// The functions of bus 0 that answer.
    pub fn functions(&self) -> impl Iterator<Item = Function> {
        (0..=255)
            .map(|devfn| Function { devfn })
            .filter(move |&function| self.present(function))
    }

    fn present(&self, function: Function) -> bool {
        let first = Function {
            devfn: function.devfn & !7,
        };
        let multi = function == first || self.read(first, HEADER_TYPE, 1) & 0x80 != 0;
        multi && !matches!(self.read(function, 0, 4), 0 | 0xffff_ffff)
    }

    /// Vendor and device ID.
    pub fn id(&self, function: Function) -> (u16, u16) {
        let id = self.read(function, 0, 4);
        (id as u16, (id >> 16) as u16)
    }

    /// Lets the function answer at its BARs and use memory.
    pub fn enable(&self, function: Function) {
        let command = self.read(function, COMMAND, 2);
        self.write(function, COMMAND, 2, command | COMMAND_ON);
    }

    /// Puts what is behind the function's first BAR, which has 64 bits, at an address, and lets the function answer.
    pub fn place(&self, function: Function, address: u64) {
        self.write(function, COMMAND, 2, 0);
        self.write(function, BAR0, 4, address as u32);
        self.write(function, BAR0 + 4, 4, (address >> 32) as u32);
        self.write(function, COMMAND, 2, COMMAND_ON);
    }

    /// Capabilities: identifier and offset.
    pub fn capabilities(&self, function: Function) -> impl Iterator<Item = (u8, u16)> {
        let first = match self.read(function, STATUS, 2) & STATUS_CAPABILITIES {
            0 => 0,
            _ => self.read(function, CAPABILITIES, 1) as u16,
        };
        let pci = *self;
        core::iter::successors(Some(first), move |&offset| {
            Some(pci.read(function, offset + 1, 1) as u16)
        })
        .take(48)
        .take_while(|&offset| offset >= 0x40)
        .map(move |offset| (pci.read(function, offset, 1) as u8, offset))
    }

    /// The memory BARs with their sizes, and maps them. Decoding is off while it sizes them.
    pub fn bars(&self, function: Function) -> [Bar; BARS] {
        let mut bars = [Bar::default(); BARS];
        let command = self.read(function, COMMAND, 2);
        self.write(function, COMMAND, 2, command & !COMMAND_ON);
        let mut index = 0;
        while index < BARS {
            let offset = BAR0 + 4 * index as u16;
            let low = self.read(function, offset, 4);
            let wide = low & 0b111 == 0b100;
            if low & 1 == 0 {
                bars[index] = self.size_bar(function, offset, wide);
            }
            index += if wide { 2 } else { 1 };
        }
        self.write(function, COMMAND, 2, command);
        for bar in bars.iter().filter(|bar| bar.addr != 0) {
            paging::map(bar.addr, bar.len);
        }
        bars
    }

    fn size_bar(&self, function: Function, offset: u16, wide: bool) -> Bar {
        let low = self.read(function, offset, 4);
        let high = if wide {
            self.read(function, offset + 4, 4)
        } else {
            0
        };
        self.write(function, offset, 4, u32::MAX);
        let mut mask = u64::from(self.read(function, offset, 4) & !0xf) | u64::MAX << 32;
        self.write(function, offset, 4, low);
        if wide {
            self.write(function, offset + 4, 4, u32::MAX);
            mask &= u64::from(self.read(function, offset + 4, 4)) << 32 | 0xffff_ffff;
            self.write(function, offset + 4, 4, high);
        }
        let addr = u64::from(high) << 32 | u64::from(low & !0xf);
        match mask & 0xffff_fff0 {
            0 if !wide => Bar::default(),
            _ => Bar {
                addr,
                len: (!mask).wrapping_add(1),
            },
        }
    }
}

fn select(function: Function, offset: u16) {
    let address = 1 << 31 | u32::from(function.devfn) << 8 | u32::from(offset & 0xfc);
    cpu::outl(CONFIG_ADDRESS, address);
}
