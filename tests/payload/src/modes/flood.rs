//! `flood`: writes to the console for `secs=` (10) as fast as the port takes it.

use crate::machine::Machine;
use crate::{cpu, println, serial, time};

const LINE: &[u8] = b"the quick brown fox jumps over the lazy dog, again and again\n";

/// Runs the mode.
pub fn run(machine: &Machine) {
    let secs = machine.cmdline.number("secs").unwrap_or(10);
    let end = cpu::tsc() + time::from_ms(secs * 1000);
    let mut bytes = 0;
    while cpu::tsc() < end {
        LINE.iter().for_each(|&byte| cpu::outb(serial::COM1, byte));
        bytes += LINE.len();
    }
    println!("\nRESULT flood={bytes}");
}
