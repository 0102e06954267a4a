//! Memory that no device is ever told of, to see that none writes it.
//!
//! One part lies right below the rings, so that an address that runs backwards or wraps lands in
//! it; the other is low memory, where address arithmetic that loses its high bits ends up. The
//! lowest 64 KiB are left out: a queue whose address was never set is at address 0.

use crate::machine::Machine;
use crate::{memmap, phys};

const LEN: u64 = 1 << 20;
const LOW_START: u64 = 0x1_0000;

/// The guarded memory.
pub struct Canary {
    start: u64,
    low_end: u64,
}

impl Canary {
    /// Takes and fills memory; low memory has been cleared up to `low_end`.
    pub fn new(machine: &Machine, low_end: u64) -> Self {
        let start = memmap::allocate(LEN, 4096);
        for addr in (start..start + LEN).step_by(8) {
            phys::w64(addr, pattern(addr));
        }
        let low = machine.memory.ram().find(|range| range.start < LOW_START);
        Self {
            start,
            low_end: low.map_or(LOW_START, |range| range.end.min(low_end)),
        }
    }

    /// The first address that changed, and the last.
    pub fn broken(&self) -> Option<(u64, u64)> {
        let mut changed = self
            .words()
            .filter(|&(addr, value)| phys::r64(addr) != value);
        let first = changed.next()?.0;
        Some((first, changed.last().map_or(first, |(addr, _)| addr)))
    }

    /// Writes it anew.
    pub fn mend(&self) {
        self.words()
            .for_each(|(addr, value)| phys::w64(addr, value));
    }

    /// Each word's address and what belongs there.
    fn words(&self) -> impl Iterator<Item = (u64, u64)> {
        let high = (self.start..self.start + LEN).step_by(8);
        let low = (LOW_START..self.low_end).step_by(8);
        high.map(|addr| (addr, pattern(addr)))
            .chain(low.map(|addr| (addr, 0)))
    }
}

fn pattern(addr: u64) -> u64 {
    addr.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
