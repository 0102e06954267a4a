//! From the execution of the program to the guest's first instruction, and what memory it takes.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, REST, ms};
use crate::guest::GuestSpec;
use crate::procfs::{self, CpuTimes};
use crate::record::Values;
use crate::vm::Vm;
use crate::vmm::{Kind, Vmm};

const PATIENCE: Duration = Duration::from_secs(60);

/// Start of the bare-metal guest, each VMM in turn, and the processor time of all its threads. A round before the first is not recorded.
pub fn first_instruction(bench: &mut Bench) {
    let vmms = bench.vmms(|_| true);
    for round in 0..=bench.rounds(20) {
        for vmm in &vmms {
            let result = start_once(vmm);
            if let Some(round) = round.checked_sub(1) {
                bench
                    .record
                    .add("start/first-instruction", &vmm.name, round, result);
            }
        }
    }
}

fn start_once(vmm: &Vmm) -> Result<Values> {
    let mut vm = Vm::start(vmm, &GuestSpec::payload("hello"))?;
    let time = vm.first_instruction(PATIENCE)?;
    let cpu = CpuTimes::read(&vm.pids()).since(&CpuTimes::default(), |_| true);
    Ok(Values::from([
        ("time_ms".to_owned(), ms(time)),
        ("cpu_ms".to_owned(), cpu as f64 / 1e6),
    ]))
}

/// Boot of the test Linux to its init.
pub fn linux(bench: &mut Bench) {
    let vmms =
        bench.vmms(|kind| !matches!(kind, Kind::Bare | Kind::Firecracker { sync: true, .. }));
    for round in 0..bench.rounds(3) {
        for vmm in &vmms {
            let result = boot_once(vmm);
            bench
                .record
                .add("start/linux-init", &vmm.name, round, result);
        }
    }
}

fn boot_once(vmm: &Vmm) -> Result<Values> {
    let mut vm = Vm::start(vmm, &GuestSpec::linux())?;
    let (_, time) = vm.wait_for("GUEST-INIT-READY", Duration::from_secs(300))?;
    Ok(Values::from([("time_s".to_owned(), time.as_secs_f64())]))
}

/// Memory of all processes of a machine whose guest idles, without guest RAM.
pub fn memory(bench: &mut Bench) {
    let vmms =
        bench.vmms(|kind| !matches!(kind, Kind::Bare | Kind::Firecracker { sync: true, .. }));
    for round in 0..bench.rounds(3) {
        for vmm in &vmms {
            let result = memory_once(vmm);
            bench
                .record
                .add("memory/overhead", &vmm.name, round, result);
        }
    }
}

fn memory_once(vmm: &Vmm) -> Result<Values> {
    let guest = GuestSpec::payload("crash how=halt");
    let mut vm = Vm::start(vmm, &guest)?;
    vm.wait_for("CRASH how=halt", PATIENCE)?;
    std::thread::sleep(REST);
    let pids = vm.pids();
    let memory = procfs::memory(&pids, guest.ram_mib * 1024)?;
    Ok([
        ("pss_kib", memory.pss as f64),
        ("rss_kib", memory.rss as f64),
        ("private_dirty_kib", memory.private_dirty as f64),
        ("processes", pids.len() as f64),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into())
}
