//! `storm`: resets the machine while its devices work, boot after boot. Where one boot ends and the
//! next begins is for the test to count: RAM is as new each time.

use crate::machine::Machine;
use crate::modes::hostile;
use crate::{cpu, power, println};

/// Runs the mode; never returns.
pub fn run(machine: &Machine) {
    let devices = hostile::busy(machine);
    println!("STORM devices={devices}");
    match cpu::tsc() >> 4 & 1 {
        0 => power::reset(),
        _ => cpu::outb(0x64, 0xfe),
    }
    cpu::halt()
}
