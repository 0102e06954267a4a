//! virtio-blk under each VMM, and the host's own `io_uring` on the same image.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise};

use super::results::{Fields, measured};
use super::{Bench, SECS};
use crate::guest::{DiskSpec, GuestSpec};
use crate::host::disk::{self, Load};
use crate::record::Values;
use crate::vm::Vm;
use crate::vmm::{Kind, Vmm};

const PATIENCE: Duration = Duration::from_secs(60);
const IMAGE_BYTES: usize = 512 << 20;

/// The loads: a name of the payload's, its depth, the bytes of a request.
const LOADS: &[Load] = &[
    Load::new("randread", 1, 4096),
    Load::new("randread", 32, 4096),
    Load::new("randwrite", 1, 4096),
    Load::new("randwrite", 32, 4096),
    Load::new("seqread", 4, 1 << 20),
    Load::new("seqwrite", 4, 1 << 20),
    Load::new("flush", 1, 4096),
];

/// All loads with and without the host's page cache.
pub fn run(bench: &mut Bench) {
    let vmms = bench.vmms(|kind| kind != Kind::Bare);
    let image = match image() {
        Ok(image) => image,
        Err(error) => return bench.record.add("disk", "host", 0, Err(error)),
    };
    for round in 0..bench.rounds(3) {
        for direct in [true, false] {
            let mode = if direct { "direct" } else { "cached" };
            for vmm in &vmms {
                if let Err(error) = settle(&image) {
                    return bench.record.add("disk", "host", round, Err(error));
                }
                let disk = DiskSpec {
                    path: image.clone(),
                    direct,
                };
                let result = one_vmm(bench, vmm, disk, mode, round);
                if let Err(error) = result {
                    bench
                        .record
                        .add(&format!("disk/{mode}"), &vmm.name, round, Err(error));
                }
            }
            if let Err(error) = settle(&image) {
                return bench.record.add("disk", "host", round, Err(error));
            }
            for load in LOADS.iter().filter(|_| bench.host) {
                let result = disk::run(&image, direct, load, Duration::from_secs(SECS));
                bench.record.add(&case(mode, load), "host", round, result);
            }
        }
    }
}

fn case(mode: &str, load: &Load) -> String {
    format!("disk/{mode}/{}:{}", load.kind, load.depth)
}

/// An image whose blocks are allocated.
fn image() -> Result<PathBuf> {
    let dir = Path::new("target/bench");
    fs::create_dir_all(dir)?;
    let path = dir.canonicalize()?.join("disk.img");
    if fs::metadata(&path).is_ok_and(|image| image.len() == IMAGE_BYTES as u64) {
        return Ok(path);
    }
    let mut file = File::create(&path).with_context(|| format!("Cannot make {path:?}"))?;
    let chunk: Vec<u8> = (0..1 << 20).map(|i: u32| (i + i / 251) as u8).collect();
    for _ in 0..IMAGE_BYTES >> 20 {
        file.write_all(&chunk)?;
    }
    Ok(path)
}

/// Everybody begins with the same page cache: all of the image in it, none of it dirty, in small
/// folios. Direct writes have thrown parts of it out, cached ones have left work behind; and a
/// write of 4 KiB into a large folio, which reading ahead makes, costs ten times as much.
fn settle(image: &Path) -> Result<()> {
    let mut file = File::open(image)?;
    file.sync_all()?;
    for advice in [Advice::DontNeed, Advice::Random] {
        fadvise(&file, 0, None, advice)?;
    }
    let mut chunk = vec![0; 1 << 20];
    while file.read(&mut chunk)? > 0 {}
    Ok(())
}

/// All loads in one run of the guest.
fn one_vmm(bench: &mut Bench, vmm: &Vmm, disk: DiskSpec, mode: &str, round: u32) -> Result<()> {
    let names: Vec<_> = LOADS
        .iter()
        .map(|load| format!("{}:{}", load.kind, load.depth))
        .collect();
    let cmdline = format!(
        "blkbench secs={SECS} cases={} {}",
        names.join(","),
        vmm.power_off_word()
    );
    let guest = GuestSpec {
        disk: Some(disk),
        ..GuestSpec::payload(&cmdline)
    };
    let mut vm = Vm::start(vmm, &guest)?;
    for load in LOADS {
        vm.wait_for("CASE ", PATIENCE)?;
        let (fields, cpu) = measured(&mut vm, vmm, PATIENCE)?;
        bench
            .record
            .add(&case(mode, load), &vmm.name, round, values(&fields, cpu));
    }
    Ok(())
}

fn values(fields: &Fields, cpu_ns: u64) -> Result<Values> {
    fields.no_errors()?;
    let ops = fields.number("ops")?.max(1.0);
    Ok([
        ("iops", fields.number("iops")?),
        ("mb_per_s", fields.number("bytes_per_s")? / 1e6),
        ("p50_us", fields.number("p50_ns")? / 1000.0),
        ("p99_us", fields.number("p99_ns")? / 1000.0),
        ("host_cpu_us_per_io", cpu_ns as f64 / 1000.0 / ops),
        ("kicks_per_io", fields.number("kicks")? / ops),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into())
}
