//! `exitcost`: what an exit costs, from CPL 3 and from CPL 0. `n=` repetitions (2000).
//!
//! `nop` is the way to CPL 0 and back, which every `cpl=0` figure includes.

use core::hint::black_box;

use crate::histogram::Histogram;
use crate::machine::Machine;
use crate::virtio::rng::Rng;
use crate::virtio::{Devices, id};
use crate::{cpu, phys, println, serial, time};

/// A port that nothing answers on most machines.
const DELAY_PORT: u16 = 0x80;
const SCRATCH: u16 = serial::COM1 + 7;

/// Runs the mode.
pub fn run(machine: &Machine) {
    let n = machine.cmdline.number("n").unwrap_or(2000);
    measure("nop", 0, n, cpu::kernel_nop);
    measure("cpuid", 0, n, || cpu::cpuid(0, 0));
    measure("port_write", 3, n, || cpu::outb(DELAY_PORT, 0));
    measure("port_write", 0, n, || cpu::kernel_out(DELAY_PORT, 1, 0));
    measure("uart_write", 3, n, || cpu::outb(SCRATCH, 0));
    measure("uart_read", 3, n, || cpu::inb(SCRATCH));
    measure("uart_read", 0, n, || cpu::kernel_in(SCRATCH, 1));
    let devices = Devices::discover(machine);
    let Some(device) = devices.find(id::RNG, 0).or_else(|| devices.iter().next()) else {
        return;
    };
    let status = device.status_address();
    measure("mmio_read", 3, n, || phys::r8(status));
    measure("mmio_read", 0, n, || cpu::kernel_load(status, 1));
    let Some(mut rng) = devices
        .find(id::RNG, 0)
        .and_then(|device| Rng::start(device).ok())
    else {
        return;
    };
    measure("notify", 3, n, || rng.queue.kick());
    let mut failures = 0;
    measure("rng_round_trip", 3, n, || {
        failures += u32::from(rng.request().is_err())
    });
    println!("RESULT exit=errors n={failures}");
}

fn measure<T>(name: &str, cpl: u8, n: u64, mut action: impl FnMut() -> T) {
    let mut histogram = Histogram::new();
    let start = cpu::tsc();
    for _ in 0..n {
        let before = cpu::tsc();
        black_box(action());
        histogram.record(cpu::tsc() - before);
    }
    let mean = time::to_ns(cpu::tsc() - start) / n.max(1);
    println!(
        "RESULT exit={name} cpl={cpl} n={n} mean_ns={mean} p50_ns={} p99_ns={}",
        time::to_ns(histogram.quantile(500)),
        time::to_ns(histogram.quantile(990))
    );
}
