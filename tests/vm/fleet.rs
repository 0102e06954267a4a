//! Many machines over one golden image.

use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use podvisor_tests::image::{self, MIB};
use podvisor_tests::proc::Process;
use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Disk, Vmi};

const MACHINES: usize = 20;

/// Most MiB that a machine writes.
const WRITTEN: usize = 4;

/// What an overlay has besides: header, counts and tables, with room for two clusters that the file system takes.
const OVERHEAD: u64 = 6 << 16;

/// Machines over one base exist side by side: the base stays as it is, and each takes the space of what it writes.
#[test]
fn twenty_machines_over_one_base() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let base = image::filled(dir, "golden.img", 16 * MIB);
    let before = image::sha256(&base);
    let vmi = Vmi::new("one-of-many")
        .memory("128Mi")
        .field("startStrategy", "Paused")
        .disk(Disk::new("root").from("containerDisk: {image: golden}"));
    let start = Instant::now();
    let machines: Vec<_> = (0..MACHINES)
        .map(|number| {
            let mib = 1 + number % WRITTEN;
            let overlay = dir.join(format!("overlay-{number}"));
            std::fs::write(&overlay, "").expect("a file can be made");
            let mut option = std::ffi::OsString::from("--overlay=root=");
            option.push(&overlay);
            let load = format!(
                "blkbench cases=seqwrite:{mib} span={} secs=0 warmup_ms=0",
                mib * MIB
            );
            let run = Run::new(&vmi).volume("root", &base).arg(option);
            (run.payload(&load).start_at_once(), mib, overlay)
        })
        .collect();
    for (guest, ..) in &machines {
        guest.log.wait_for("Paused", podvisor_tests::PATIENCE);
    }
    let started = start.elapsed();
    let kib = |guest: &podvisor_tests::run::Guest| {
        let processes = [guest.pid(), guest.vm_pid()];
        let private = processes.map(|pid| Process::new(pid).private_kib());
        private.iter().sum::<u64>()
    };
    let memory: u64 = machines.iter().map(|(guest, ..)| kib(guest)).sum();
    for (guest, ..) in &machines {
        guest.control().resume();
    }
    let mut space = 0;
    for (mut guest, mib, overlay) in machines {
        let said = guest.wait_for("RESULT bench=blk");
        assert!(said.contains("errors=0"), "{said}");
        guest.exits_with(0);
        let taken = overlay.metadata().expect("there").blocks() * 512;
        let written = (mib * MIB) as u64;
        assert!(
            (written..=written + OVERHEAD).contains(&taken),
            "{taken} bytes for {written} that were written"
        );
        space += taken;
    }
    assert_eq!(image::sha256(&base), before, "the base is as it was");
    println!(
        "{MACHINES} machines over one image of 16 MiB: each started in {} ms beside the others, has {} KiB of memory \
         for itself and {} KiB on the disk",
        started.as_millis() / MACHINES as u128,
        memory / MACHINES as u64,
        space / MACHINES as u64 / 1024
    );
}
