//! Random accesses to registers: BARs, configuration space, MSI-X tables, and the holes
//! between, from CPL 3 and now and then from CPL 0.

use super::values::Values;
use super::{Hostile, Target};
use crate::pci::Function;
use crate::virtio::pci::{Region, common};
use crate::{cpu, memmap, paging, phys, power};

const BURST: u64 = 64;
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// Where message addresses are decoded.
pub const MSI_BASE: u32 = 0xfee0_0000;
/// Delivery modes that do not restart this CPU: fixed, lowest priority, NMI.
const MSI_MODES: [u32; 3] = [0x000, 0x100, 0x400];

/// Random accesses to the structures of one device.
pub fn attack(h: &mut Hostile) {
    let Some(target) = h.target() else { return };
    for _ in 0..h.values.prng.below(BURST) + 1 {
        let t = &target.transport;
        match h.values.prng.below(10) {
            0..=4 => common_access(h, &target),
            5 | 6 => region_access(h, &target, t.device),
            7 => region_access(h, &target, t.isr),
            8 => region_access(h, &target, t.notify),
            _ => bar_access(h, &target),
        }
    }
}

/// Reads or writes anywhere in a region, and a little beyond.
fn region_access(h: &mut Hostile, target: &Target, region: Region) {
    if region.addr != 0 {
        let offset = h.values.prng.below(region.len.max(1) + 8);
        harmless_access(h, target, region.addr + offset);
    }
}

/// An access that does not touch the structures with addresses in them.
fn harmless_access(h: &mut Hostile, target: &Target, addr: u64) {
    let inside = |region: Region| addr + 8 > region.addr && addr < region.addr + region.len;
    let table = target.msix.map_or(Region::default(), |msix| msix.table);
    if !inside(target.transport.common) && !inside(table) {
        access(h, addr);
    }
}

fn access(h: &mut Hostile, addr: u64) {
    let width = h.values.width();
    let value = h.values.word();
    let kernel = h.values.prng.one_in(10);
    h.accesses += 1;
    match (h.values.prng.one_in(3), kernel) {
        (true, false) => drop(phys::load(addr, width)),
        (true, true) => drop(cpu::kernel_load(addr, width)),
        (false, false) => phys::store(addr, width, value),
        (false, true) => cpu::kernel_store(addr, width, value),
    }
}

/// The common structure: ring addresses only get values that spare the payload.
fn common_access(h: &mut Hostile, target: &Target) {
    let base = target.transport.common.addr;
    let offset = h.values.prng.below(common::LEN + 8);
    let width = h.values.width();
    let end = offset + u64::from(width);
    h.accesses += 1;
    if h.values.prng.one_in(3) {
        phys::load(base + offset, width);
    } else if end <= common::QUEUE_DESC || offset >= common::LEN {
        let value = match offset {
            common::QUEUE_SELECT => h.values.prng.below(u64::from(target.queues) + 2),
            common::DEVICE_STATUS => h.values.prng.below(16),
            _ => h.values.word(),
        };
        phys::store(base + offset, width, value);
    } else {
        let register = common::QUEUE_DESC + 8 * h.values.prng.below(3);
        let low = h.values.addr_low();
        let high = h.values.addr() >> 32;
        match h.values.prng.below(3) {
            0 => phys::w32(base + register, low),
            1 => phys::store(base + register + 4, 1 << h.values.prng.below(3), high),
            _ => phys::w64(base + register, high << 32 | u64::from(low)),
        }
    }
}

/// Anywhere in a BAR.
fn bar_access(h: &mut Hostile, target: &Target) {
    let bar = h.values.prng.pick(&target.transport.bars);
    if bar.addr == 0 {
        return;
    }
    let offset = h.values.prng.below(bar.len);
    harmless_access(h, target, bar.addr + offset);
}

/// Random MSI-X entries, masks, and the function's control word.
pub fn msix(h: &mut Hostile) {
    if let Some(target) = h.target() {
        msix_of(h, &target);
    }
}

/// The same of one device.
pub fn msix_of(h: &mut Hostile, target: &Target) {
    let Some(msix) = target.msix else { return };
    for _ in 0..h.values.prng.below(BURST) + 1 {
        let entry = msix.table.addr + 16 * h.values.prng.below(u64::from(msix.vectors) + 1);
        let beyond = entry >= msix.table.addr + msix.table.len;
        let value = h.values.word() as u32;
        h.accesses += 1;
        match h.values.prng.below(8) {
            _ if beyond => drop(phys::r32u(entry)),
            0 | 1 => phys::w32u(entry, message_address(h, value)),
            2 => phys::w32u(entry + 4, value),
            3 => phys::w32u(entry + 8, message_data(&mut h.values, value)),
            4 => phys::w32u(entry + 12, value),
            5 => phys::w64(entry + 8, u64::from(message_data(&mut h.values, value))),
            6 => msix.enable(&h.pci, &target.transport, value & 1 != 0),
            _ => {
                let offset = h.values.prng.below(msix.pending.len);
                harmless_access(h, target, msix.pending.addr + offset);
            }
        }
    }
}

fn message_address(h: &mut Hostile, value: u32) -> u32 {
    if h.values.prng.one_in(8) {
        h.values.addr_low()
    } else {
        MSI_BASE | value & 0xf_ffff
    }
}

/// Never INIT, SMI or ExtINT; trigger and level as they come.
pub fn message_data(values: &mut Values, value: u32) -> u32 {
    value & !0x700 | values.prng.pick(&MSI_MODES)
}

/// Random configuration accesses, by ECAM and by CF8/CFC.
pub fn configuration_space(h: &mut Hostile) {
    for _ in 0..h.values.prng.below(BURST) + 1 {
        let Some(target) = h.target() else { return };
        let any = !h.virtio_only && h.values.prng.one_in(3);
        let devfn = if any {
            h.values.prng.next() as u8
        } else {
            target.transport.function.devfn
        };
        let function = Function { devfn };
        let offset = match h.values.prng.below(4) {
            0 => h.values.prng.below(4096),
            1 => h.values.prng.below(0x40),
            _ => h.values.prng.below(256),
        };
        match h.pci.ecam(function) {
            Some(base) if h.values.prng.one_in(2) => access(h, base + offset.min(4088)),
            _ => by_ports(h, devfn, offset),
        }
    }
}

fn by_ports(h: &mut Hostile, devfn: u8, offset: u64) {
    let bus = if !h.virtio_only && h.values.prng.one_in(10) {
        h.values.word() as u32 & 0xff
    } else {
        0
    };
    let address = 1 << 31 | bus << 16 | u32::from(devfn) << 8 | offset as u32 & 0xfc;
    let width = h.values.prng.pick(&[1u8, 2, 4]);
    let port = CONFIG_DATA + h.values.prng.below(5 - u64::from(width)) as u16;
    h.accesses += 1;
    cpu::outl(CONFIG_ADDRESS, address);
    match h.values.prng.one_in(3) {
        true => drop(cpu::input(port, width)),
        false => cpu::out(port, width, h.values.word() as u32),
    }
}

/// The hole below 4 GiB and addresses above all RAM, except where KVM's APICs are and where
/// the machine ends.
pub fn hole(h: &mut Hostile) {
    for _ in 0..h.values.prng.below(BURST) + 1 {
        let addr = match h.values.prng.below(3) {
            0 => 0xc000_0000 + h.values.prng.below(0x4000_0000 - 8),
            1 => 0xf000_0000 + h.values.prng.below(0x0f00_0000),
            _ => (1 << 40) + h.values.prng.below(1 << 31),
        };
        let apics = (0xfec0_0000..0xff00_0000).contains(&addr);
        let end = power::registers().any(|r| !r.io && addr.abs_diff(r.addr) < 16);
        let structures = h.targets.iter().flatten().any(|target| {
            target
                .transport
                .bars
                .iter()
                .any(|bar| addr.wrapping_sub(bar.addr) < bar.len)
        });
        if !apics && !end && !structures && addr >= memmap::free().end {
            paging::map(addr, 8);
            access(h, addr);
        }
    }
}
