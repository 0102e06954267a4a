//! Many small machines at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::{Bench, REST, Scale};
use crate::guest::GuestSpec;
use crate::procfs::{self, Memory};
use crate::record::Values;
use crate::vm::Vm;
use crate::vmm::{Kind, Vmm};

const MACHINES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts 200 machines with 64 MiB, two for each processor at a time.
pub fn run(bench: &mut Bench) {
    let wanted = match bench.scale {
        Scale::Quick => MACHINES / 10,
        _ => MACHINES,
    };
    let vmms = bench.vmms(|kind| {
        let firecracker = Kind::Firecracker {
            pci: false,
            sync: false,
        };
        matches!(
            kind,
            Kind::Podvisor | Kind::QemuMicrovm | Kind::CloudHypervisor | Kind::Bare
        ) || kind == firecracker
    });
    for round in 0..bench.rounds(3) {
        for vmm in &vmms {
            let result = once(vmm, wanted);
            bench
                .record
                .add(&format!("density/{wanted}"), &vmm.name, round, result);
        }
    }
}

fn once(vmm: &Vmm, wanted: usize) -> Result<Values> {
    let guest = GuestSpec {
        ram_mib: 64,
        ..GuestSpec::payload("crash how=halt")
    };
    let crowd = Crowd::start(wanted, || {
        let mut vm = Vm::start(vmm, &guest)?;
        match vmm.kind {
            Kind::Bare => vm.first_instruction(PATIENCE).map(drop)?,
            _ => vm.wait_for("CRASH how=halt", PATIENCE).map(drop)?,
        }
        Ok(vm)
    })?;
    let memory = procfs::memory(&crowd.pids(), guest.ram_mib * 1024)?;
    Ok(crowd.values(memory, [("private_dirty_kib_per_vm", memory.private_dirty)]))
}

/// Machines that run at the same time.
pub(super) struct Crowd {
    machines: Vec<Vm>,
    lost: usize,
    /// What it took to start them: seconds, KiB of the host's memory.
    seconds: f64,
    taken: u64,
}

impl Crowd {
    /// Starts as many; some may be lost by the time when all were there.
    pub(super) fn start(wanted: usize, start: impl Fn() -> Result<Vm> + Sync) -> Result<Self> {
        let available = procfs::meminfo("MemAvailable")?;
        let begin = Instant::now();
        let mut machines = start_all(wanted, start)?;
        let seconds = begin.elapsed().as_secs_f64();
        std::thread::sleep(REST);
        let taken = available.saturating_sub(procfs::meminfo("MemAvailable")?);
        let running = machines
            .iter_mut()
            .filter_map(|vm| vm.is_running().then_some(()));
        let lost = wanted - running.count();
        Ok(Self {
            machines,
            lost,
            seconds,
            taken,
        })
    }

    /// Their processes.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.machines.iter().flat_map(Vm::pids).collect()
    }

    /// What all cases tell, of their memory without RAM, and `more` sums over all machines in KiB.
    pub(super) fn values<const N: usize>(&self, memory: Memory, more: [(&str, u64); N]) -> Values {
        let count = self.machines.len() as f64;
        let per_vm = [
            ("pss_kib_per_vm", memory.pss),
            ("host_memory_kib_per_vm", self.taken),
        ];
        let per_vm = per_vm.into_iter().chain(more);
        let per_vm = per_vm.map(|(name, kib)| (name.to_owned(), kib as f64 / count));
        let whole = [
            ("vms_per_s".to_owned(), count / self.seconds),
            ("lost".to_owned(), self.lost as f64),
        ];
        per_vm.chain(whole).collect()
    }
}

/// Starts as many, two for each processor at a time.
fn start_all(wanted: usize, start: impl Fn() -> Result<Vm> + Sync) -> Result<Vec<Vm>> {
    let jobs = 2 * std::thread::available_parallelism()?.get();
    let (next, machines) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<()> {
        while next.fetch_add(1, Ordering::Relaxed) < wanted {
            let vm = start()?;
            machines
                .lock()
                .map_err(|_| anyhow!("another job panicked"))?
                .push(vm);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        let ends = jobs.into_iter().map(|job| {
            job.join()
                .unwrap_or_else(|_| Err(anyhow!("a job panicked")))
        });
        ends.collect::<Vec<_>>().into_iter().collect::<Result<()>>()
    })?;
    machines.into_inner().map_err(|_| anyhow!("a job panicked"))
}
