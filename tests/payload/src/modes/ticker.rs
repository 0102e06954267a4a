//! `ticker`: a counter per CPU, for the pause test. Each CPU prints `TICK cpu=C n=N us=T`
//! every `interval_ms=` (100) until `secs=` (60) have passed.
//!
//! The line also has the longest time between two looks at the clock since the last tick:
//! a pause shows as a gap, and one that stops guest time shows as none.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::acpi::MAX_CPUS;
use crate::machine::Machine;
use crate::{cpu, println, smp, time};

static INTERVAL: AtomicU64 = AtomicU64::new(0);
static START: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Runs the mode.
pub fn run(machine: &Machine) {
    let secs = machine.cmdline.number("secs").unwrap_or(60);
    let interval = machine.cmdline.number("interval_ms").unwrap_or(100);
    let start = cpu::tsc();
    INTERVAL.store(time::from_ms(interval), Ordering::Relaxed);
    START.store(start, Ordering::Relaxed);
    END.store(start + time::from_ms(secs * 1000), Ordering::Relaxed);
    let started = smp::start(machine, MAX_CPUS - 1, tick);
    tick(0);
    smp::join(started, 10_000);
    println!("RESULT ticker_cpus={}", started + 1);
}

fn tick(index: u32) {
    let (start, end) = (START.load(Ordering::Relaxed), END.load(Ordering::Relaxed));
    let interval = INTERVAL.load(Ordering::Relaxed);
    let mut next = start + interval;
    let (mut last, mut gap) = (cpu::tsc(), 0);
    let mut n = 0u64;
    while last < end {
        cpu::pause();
        let now = cpu::tsc();
        gap = gap.max(now.saturating_sub(last));
        last = now;
        if now >= next {
            n += 1;
            let (us, gap_us) = (time::to_ns(now - start) / 1000, time::to_ns(gap) / 1000);
            println!("TICK cpu={index} n={n} us={us} gap_us={gap_us}");
            last = cpu::tsc();
            gap = 0;
            next = last + interval;
        }
    }
}
