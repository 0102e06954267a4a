//! `memory`: writes to all RAM that the memory map names and reads it back.
//!
//! `stride=` bytes between words (default 4 KiB, so that each page is touched).

use core::ops::Range;

use crate::machine::Machine;
use crate::{boot, memmap, paging, phys, println};

const FOUR_GIB: u64 = 1 << 32;
const MIB: u64 = 1 << 20;

/// Runs the mode.
pub fn run(machine: &Machine) {
    let stride = machine.cmdline.number("stride").unwrap_or(4096).max(8) & !7;
    for range in machine.memory.ram() {
        println!("RAM {:#x}..{:#x}", range.start, range.end);
    }
    let ranges = || {
        machine
            .memory
            .ram()
            .map(usable)
            .filter(|range| range.start < range.end)
    };
    for range in ranges() {
        paging::map(range.start, range.end - range.start);
        for addr in range.step_by(stride as usize) {
            phys::w64(addr, pattern(addr));
        }
    }
    let mut errors = 0u64;
    let mut words = 0u64;
    for range in ranges() {
        for addr in range.step_by(stride as usize) {
            words += 1;
            let found = phys::r64(addr);
            if found != pattern(addr) {
                errors += 1;
                if errors <= 10 {
                    println!("ERROR at {addr:#x}: {found:#x}");
                }
            }
        }
    }
    let total = |high: bool| -> u64 {
        machine
            .memory
            .ram()
            .filter(|r| (r.start >= FOUR_GIB) == high)
            .map(|r| r.end - r.start)
            .sum()
    };
    println!(
        "RESULT low_bytes={} high_bytes={} words={words} errors={errors}",
        total(false),
        total(true)
    );
}

/// Leaves out the first MiB (tables of the VMM) and the payload with its arena so far.
fn usable(range: Range<u64>) -> Range<u64> {
    let mut start = range.start.max(MIB).next_multiple_of(8);
    if range.contains(&boot::image().start) {
        start = memmap::free().start;
    }
    start..(range.end & !7)
}

fn pattern(addr: u64) -> u64 {
    addr.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ !addr
}
