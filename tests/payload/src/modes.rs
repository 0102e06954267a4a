//! The modes: one function each, named by a word of the command line.

mod blkbench;
mod crash;
mod durable;
mod exitcost;
mod flood;
mod hostile;
mod later;
mod masked;
mod memory;
mod netbench;
mod sane;
mod silent;
mod smbios;
mod smp;
mod storm;
mod ticker;

use crate::machine::Machine;
use crate::println;

type Mode = (&'static str, fn(&Machine));

const MODES: &[Mode] = &[
    ("hello", hello),
    ("memory", memory::run),
    ("smbios", smbios::run),
    ("smp", smp::run),
    ("ticker", ticker::run),
    ("crash", crash::run),
    ("sane", sane::run),
    ("hostile", hostile::run),
    ("later", later::run),
    ("masked", masked::run),
    ("silent", silent::run),
    ("storm", storm::run),
    ("flood", flood::run),
    ("blkbench", blkbench::run),
    ("durable", durable::run),
    ("netbench", netbench::run),
    ("exitcost", exitcost::run),
];

/// Runs the mode that the command line names, `hello` if none.
pub fn run(machine: &Machine) {
    let (name, mode) = machine
        .cmdline
        .words()
        .map(|word| word.strip_prefix("mode=").unwrap_or(word))
        .find_map(|word| MODES.iter().find(|(name, _)| *name == word))
        .unwrap_or(&MODES[0]);
    println!("podvisor-payload mode={name}");
    mode(machine);
}

/// Nothing: the banner is enough.
fn hello(_: &Machine) {}
