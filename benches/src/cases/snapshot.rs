//! Machines that go on from a snapshot: how soon their user space runs, and what many of one snapshot cost.

use std::time::Duration;

use anyhow::Result;

use super::density::Crowd;
use super::{Bench, Scale, ms};
use crate::guest::GuestSpec;
use crate::procfs::{self, CpuTimes};
use crate::record::Values;
use crate::snapshot::Snapshot;
use crate::vm::Vm;
use crate::vmm::{Kind, Vmm};

const CLONES: usize = 100;
const PATIENCE: Duration = Duration::from_secs(120);
/// A Linux takes its time where guest kernels are interpreted.
const BOOT: Duration = Duration::from_secs(300);

/// Who can save and restore, as this knows it.
fn saves(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Podvisor
            | Kind::Firecracker {
                pci: false,
                sync: false
            }
    )
}

/// From the execution of the program to the first word of a guest that was in the middle of a sentence: one without an
/// operating system, and a program in the user space of a Linux.
pub fn user_space(bench: &mut Bench) {
    let payload = GuestSpec::payload("flood secs=100000000");
    restore(bench, "snapshot/user-space", &payload, |vm| {
        vm.first_byte(PATIENCE).map(drop)
    });
    let linux = GuestSpec {
        cmdline: podvisor_tests::guest::linux_cmdline("talk"),
        ..GuestSpec::linux()
    };
    restore(bench, "snapshot/linux-user-space", &linux, |vm| {
        vm.wait_for("TALK", BOOT).map(drop)
    });
}

/// Under each VMM in turn. A round before the first is not recorded: the snapshot's files are in the page cache then.
fn restore(
    bench: &mut Bench,
    case: &str,
    guest: &GuestSpec,
    until: impl Fn(&mut Vm) -> Result<()>,
) {
    let take = |vmm: Vmm| {
        let snapshot = Snapshot::take(&vmm, guest, &until);
        (vmm, snapshot)
    };
    let taken: Vec<_> = bench.vmms(saves).into_iter().map(take).collect();
    for round in 0..=bench.rounds(20) {
        for (vmm, snapshot) in &taken {
            let result = match snapshot {
                Ok(snapshot) => go_on(snapshot),
                Err(error) => Err(anyhow::anyhow!("{error:#}")),
            };
            if let Some(round) = round.checked_sub(1) {
                bench.record.add(case, &vmm.name, round, result);
            }
        }
    }
}

fn go_on(snapshot: &Snapshot) -> Result<Values> {
    let mut vm = snapshot.restore()?;
    let time = vm.first_byte(PATIENCE)?;
    let cpu = CpuTimes::read(&vm.pids()).since(&CpuTimes::default(), |_| true);
    Ok(Values::from([
        ("time_ms".to_owned(), ms(time)),
        ("cpu_ms".to_owned(), cpu as f64 / 1e6),
    ]))
}

/// A hundred machines of one snapshot of a Linux that says something once a second.
pub fn clones(bench: &mut Bench) {
    let wanted = match bench.scale {
        Scale::Quick => CLONES / 10,
        _ => CLONES,
    };
    let guest = GuestSpec {
        cmdline: podvisor_tests::guest::linux_cmdline("ticker"),
        ..GuestSpec::linux()
    };
    for vmm in bench.vmms(saves) {
        let snapshot = Snapshot::take(&vmm, &guest, |vm| vm.wait_for("TICK", BOOT).map(drop));
        for round in 0..bench.rounds(3) {
            let result = match &snapshot {
                Ok(snapshot) => clone(snapshot, &guest, wanted),
                Err(error) => Err(anyhow::anyhow!("{error:#}")),
            };
            let case = format!("snapshot/clones:{wanted}");
            bench.record.add(&case, &vmm.name, round, result);
        }
    }
}

fn clone(snapshot: &Snapshot, guest: &GuestSpec, wanted: usize) -> Result<Values> {
    let crowd = Crowd::start(wanted, || {
        let mut vm = snapshot.restore()?;
        vm.wait_for("TICK", PATIENCE)?;
        Ok(vm)
    })?;
    let (memory, ram) = procfs::memory_and_ram(&crowd.pids(), guest.ram_mib * 1024)?;
    // Pages of RAM that the clone has read or written, and those that are its own since it wrote.
    let more = [
        ("ram_touched_kib_per_vm", ram.rss),
        ("ram_own_kib_per_vm", ram.private_dirty),
    ];
    Ok(crowd.values(memory, more))
}
