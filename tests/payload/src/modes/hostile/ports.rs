//! Random port accesses, and a console that is not left alone.

use super::Hostile;
use crate::{cpu, power, serial};

const BURST: u64 = 64;
/// Bytes in a burst to the console, and in all of them together.
const FLOOD: u64 = 512;
const FLOOD_LIMIT: u64 = 64 << 10;

/// Ports that end the machine or do DMA on the VMM's behalf, as ranges.
const AVOID: &[(u16, u16)] = &[
    (0x60, 0x60),   // keyboard controller: output port has the reset line
    (0x64, 0x64),   // keyboard controller: reset
    (0x92, 0x92),   // fast reset
    (0xb2, 0xb3),   // SMI
    (0xcf9, 0xcf9), // reset control
    (0x505, 0x505), // pvpanic
    (0x510, 0x51b), // fw_cfg
    (0x600, 0x67f), // power management of PC chipsets
];
/// Ports that something usually answers.
const POPULAR: &[u16] = &[
    0x20, 0x21, 0xa0, 0xa1, 0x40, 0x42, 0x43, 0x61, 0x70, 0x71, 0x80, 0x3f8, 0x3f9, 0x3fa, 0x3fb,
    0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x2f8, 0x4d0, 0xcf8, 0xcfc, 0xcfd, 0xcfe, 0xcff, 0x504, 0x506,
    0x700, 0x704, 0x708,
];

/// Reads and writes ports, all of them but those in [`AVOID`].
pub fn attack(h: &mut Hostile) {
    for _ in 0..h.values.prng.below(BURST) + 1 {
        let port = match h.values.prng.below(3) {
            0 => h.values.prng.next() as u16,
            1 => h.values.prng.below(0x1000) as u16,
            _ => h.values.prng.pick(POPULAR),
        };
        let width = h.values.prng.pick(&[1u8, 2, 4]);
        if avoid(port, width) {
            continue;
        }
        let value = h.values.word() as u32;
        h.accesses += 1;
        // The TSS's map of ports, by which programs may use them, has no port behind the last one.
        let beyond = port.checked_add(u16::from(width) - 1).is_none();
        match (h.values.prng.one_in(3), beyond || h.values.prng.one_in(10)) {
            (true, false) => drop(cpu::input(port, width)),
            (true, true) => drop(cpu::kernel_in(port, width)),
            (false, false) => cpu::out(port, width, value),
            (false, true) => cpu::kernel_out(port, width, value),
        }
    }
    threats(h);
    serial::init();
}

/// Registers that end the machine, with values that do not: other sleep states, a sleep type
/// without its enable bit, a panic that a crash kernel deals with.
fn threats(h: &mut Hostile) {
    const PVPANIC: u16 = 0x505;
    const CRASH_LOADED: u8 = 2;
    const SLEEP: [u8; 4] = [0, 1 << 5, 5 << 2, 3 << 2 | 1 << 5];
    if h.virtio_only {
        return;
    }
    for register in power::registers().filter(|register| register.io) {
        let value = h.values.prng.pick(&SLEEP);
        cpu::out(register.addr as u16, 1, value.into());
    }
    if h.values.prng.one_in(4) {
        (0..64).for_each(|_| cpu::outb(PVPANIC, CRASH_LOADED));
    }
    h.accesses += 1;
}

fn avoid(port: u16, width: u8) -> bool {
    let last = port.saturating_add(u16::from(width) - 1);
    let address = port == 0xcf8 && width == 4;
    let listed = AVOID
        .iter()
        .any(|&(first, end)| port <= end && last >= first);
    let power = power::registers()
        .any(|r| r.io && u64::from(port) <= r.addr + 3 && u64::from(last) + 3 >= r.addr);
    (listed || power) && !address
}

/// A burst of bytes to the console, faster than anything should print; bounded in all.
pub fn console(h: &mut Hostile) {
    if h.console >= FLOOD_LIMIT {
        return;
    }
    h.console += FLOOD;
    let prng = &mut h.values.prng;
    if prng.one_in(4) {
        let bytes: [u8; 64] = core::array::from_fn(|_| prng.next() as u8);
        cpu::out_string(serial::COM1, &bytes);
    } else {
        serial::flood((0..prng.below(FLOOD)).map(|_| prng.next() as u8));
    }
    h.accesses += FLOOD;
}
