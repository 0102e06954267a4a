//! `smp`: starts all CPUs; each counts natively for a moment.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::acpi::MAX_CPUS;
use crate::machine::Machine;
use crate::{cpu, println, smp, time};

static COUNTS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Runs the mode.
pub fn run(machine: &Machine) {
    time::tsc_khz(); // found by the boot processor, for all
    let started = smp::start(machine, MAX_CPUS - 1, count);
    count(0);
    let joined = smp::join(started, 10_000);
    let counted = COUNTS
        .iter()
        .filter(|count| count.load(Ordering::Relaxed) > 0)
        .count();
    println!(
        "RESULT madt_cpus={} started={} counted={counted} joined={joined} tsc_khz={}",
        machine.acpi.apic_ids().len(),
        started + 1,
        time::tsc_khz()
    );
}

fn count(index: u32) {
    let end = cpu::tsc() + time::from_ms(100);
    while cpu::tsc() < end {
        COUNTS[index as usize].fetch_add(1, Ordering::Relaxed);
    }
}
