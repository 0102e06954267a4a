//! The few ACPI facts that the payload needs, without an AML interpreter.

use core::ops::Range;

use crate::{paging, phys};

/// A generic address structure that is I/O or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// In I/O space, not memory.
    pub io: bool,
    /// Address or port.
    pub addr: u64,
}

/// The first segment of MCFG.
#[derive(Clone, Copy, Debug)]
pub struct Ecam {
    /// Address of bus 0.
    pub base: u64,
}

/// More CPUs than this are not started.
pub const MAX_CPUS: usize = 64;

/// What the tables say.
pub struct Acpi {
    /// SLEEP_CONTROL_REG of a hardware-reduced FADT.
    pub sleep: Option<Register>,
    /// PM1a_CNT of a FADT that is not hardware-reduced.
    pub pm1a_control: Option<u16>,
    /// RESET_REG and its value.
    pub reset: Option<(Register, u8)>,
    /// Configuration space.
    pub ecam: Option<Ecam>,
    apic_ids: [u32; MAX_CPUS],
    cpus: usize,
}

impl Acpi {
    /// Reads the tables from the RSDP, searched for in the BIOS area where `rsdp` is 0.
    pub fn discover(rsdp: u64) -> Self {
        let mut acpi = Self {
            sleep: None,
            pm1a_control: None,
            reset: None,
            ecam: None,
            apic_ids: [0; MAX_CPUS],
            cpus: 0,
        };
        let found = if rsdp != 0 { Some(rsdp) } else { search_rsdp() };
        if let Some(rsdp) = found {
            acpi.read_root(rsdp);
        }
        acpi
    }

    /// APIC IDs of the enabled CPUs.
    pub fn apic_ids(&self) -> &[u32] {
        &self.apic_ids[..self.cpus]
    }

    fn read_root(&mut self, rsdp: u64) {
        let extended = phys::r8(rsdp + 15) >= 2 && phys::r64(rsdp + 24) != 0;
        let (root, width) = match extended {
            true => (phys::r64(rsdp + 24), 8),
            false => (u64::from(phys::r32u(rsdp + 16)), 4),
        };
        let entries = table(root);
        for entry in (entries.start + 36..entries.end).step_by(width) {
            let addr = phys::load(entry, width as u8);
            let range = table(addr);
            match &phys::r32u(addr).to_le_bytes() {
                b"FACP" => self.read_fadt(range),
                b"APIC" => self.read_madt(range),
                b"MCFG" if range.end - range.start >= 60 => {
                    self.ecam = Some(Ecam {
                        base: phys::r64(addr + 44),
                    });
                }
                _ => {}
            }
        }
    }

    fn read_fadt(&mut self, range: Range<u64>) {
        const RESET_SUPPORTED: u32 = 1 << 10;
        const HARDWARE_REDUCED: u32 = 1 << 20;
        let len = range.end - range.start;
        let flags = if len >= 116 {
            phys::r32u(range.start + 112)
        } else {
            0
        };
        if flags & RESET_SUPPORTED != 0 && len >= 129 {
            self.reset = register(range.start + 116).map(|r| (r, phys::r8(range.start + 128)));
        }
        if flags & HARDWARE_REDUCED != 0 && len >= 256 {
            self.sleep = register(range.start + 244);
        } else if flags & HARDWARE_REDUCED == 0 {
            let port = phys::r32u(range.start + 64);
            self.pm1a_control = u16::try_from(port).ok().filter(|&port| port != 0);
        }
    }

    fn read_madt(&mut self, range: Range<u64>) {
        let mut entry = range.start + 44;
        while entry + 2 <= range.end {
            let len = phys::r8(entry + 1);
            let (id, flags) = match phys::r8(entry) {
                0 => (phys::r8(entry + 3).into(), phys::r32u(entry + 4)),
                9 => (phys::r32u(entry + 4), phys::r32u(entry + 8)),
                _ => (0, 0),
            };
            if flags & 1 != 0 && self.cpus < MAX_CPUS {
                self.apic_ids[self.cpus] = id;
                self.cpus += 1;
            }
            entry += u64::from(len.max(2));
        }
    }
}

fn register(gas: u64) -> Option<Register> {
    let register = Register {
        io: phys::r8(gas) == 1,
        addr: phys::r64(gas + 4),
    };
    (phys::r8(gas) <= 1 && register.addr != 0).then_some(register)
}

fn table(addr: u64) -> Range<u64> {
    paging::map(addr, 36);
    let len = u64::from(phys::r32u(addr + 4));
    paging::map(addr, len);
    addr..addr + len
}

fn search_rsdp() -> Option<u64> {
    const SIGNATURE: u64 = u64::from_le_bytes(*b"RSD PTR ");
    (0xe_0000..0x10_0000)
        .step_by(16)
        .find(|&addr| phys::r64(addr) == SIGNATURE)
}
