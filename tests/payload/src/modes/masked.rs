//! `masked`: an event comes while the guest has its interrupt masked, and is to be there at the unmasking.
//! The power button is pressed when `PRESS` was said; `RESULT masked=told` or `lost`.

use crate::machine::Machine;
use crate::smp::LocalApic;
use crate::{cpu, phys, println, time};

const IO_APIC: u64 = 0xfec0_0000;
/// Offset of the register that an index was written for.
const WINDOW: u64 = 0x10;
/// Index of the low half of the first entry; each has two.
const ENTRIES: u32 = 0x10;
/// The generic event device's, as the DSDT has it.
const GSI: u32 = 5;
const VECTOR: u8 = 0x45;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

/// Time that whoever presses the button has, ms, and that the interrupt then has.
const PATIENCE: u64 = 3000;

/// Runs the mode.
pub fn run(_: &Machine) {
    let apic = LocalApic::get();
    apic.enable();
    entry(1, apic.id() << 24);
    entry(0, u32::from(VECTOR) | LEVEL | MASKED);
    println!("PRESS");
    time::sleep_ms(PATIENCE);
    entry(0, u32::from(VECTOR) | LEVEL);
    let deadline = cpu::tsc() + time::from_ms(PATIENCE);
    let mut told = false;
    while !told && cpu::tsc() < deadline {
        told = apic.pending(VECTOR);
    }
    println!("RESULT masked={}", if told { "told" } else { "lost" });
}

/// Writes one half of the line's entry.
fn entry(half: u32, value: u32) {
    phys::w32(IO_APIC, ENTRIES + 2 * GSI + half);
    phys::w32(IO_APIC + WINDOW, value);
}
