//! `crash`: ends the machine in the way that `how=` names: `triple`, `emulation` (`int3` at
//! CPL 0), `panic` (pvpanic port 0x505), `reset` (ACPI reset register), `exception` (a
//! report and power off), `hang` (a loop that never ends), `halt` (HLT with interrupts off).

use crate::machine::Machine;
use crate::{cpu, phys, power, println};

const PVPANIC: u16 = 0x505;
/// No memory map reaches this far.
const UNMAPPED: u64 = 0x7f00_0000_0000;
const PVPANIC_PANICKED: u8 = 1;

/// Runs the mode.
pub fn run(machine: &Machine) {
    let how = machine.cmdline.get("how").unwrap_or("triple");
    println!("CRASH how={how}");
    match how {
        "triple" => cpu::triple_fault(),
        "emulation" => cpu::int3(),
        "panic" => cpu::outb(PVPANIC, PVPANIC_PANICKED),
        "reset" => power::reset(),
        "exception" => drop(phys::r64(UNMAPPED)),
        "hang" => loop {
            cpu::pause();
        },
        "halt" => cpu::halt(),
        other => println!("ERROR unknown how={other}"),
    }
    println!("RESULT survived={how}");
}
