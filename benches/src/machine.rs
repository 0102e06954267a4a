//! Where a record was made: the machine, the programs, their versions.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::vmm::Vmm;

/// A machine and what was measured on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Processor by its own name.
    pub processor: String,
    /// Processors that are online.
    pub cpus: usize,
    /// RAM in MiB.
    pub ram_mib: u64,
    /// Host kernel.
    pub kernel: String,
    /// Whether the processor offers VT-x or AMD-V. Without, KVM interprets guest kernels.
    pub hardware_virtualization: bool,
    /// File system of the disk images.
    pub file_system: String,
    /// Revision of this repository.
    pub revision: String,
    /// Load average when the run began.
    pub load: String,
    /// First line of each program's `--version`.
    pub versions: BTreeMap<String, String>,
}

impl Machine {
    /// This machine.
    pub fn here(vmms: &[Vmm]) -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let field = |key: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(key));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or("", |(_, value)| value.trim()).to_owned()
        };
        let flags = field("flags");
        let has = |flag| flags.split(' ').any(|word| word == flag);
        let versions = vmms
            .iter()
            .filter_map(|vmm| Some((vmm.name.clone(), vmm.version()?)));
        Ok(Self {
            processor: field("model name"),
            cpus: std::thread::available_parallelism()?.into(),
            ram_mib: crate::procfs::meminfo("MemTotal")? / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            hardware_virtualization: has("vmx") || has("svm"),
            file_system: said("stat", &["-fc", "%T", "."]),
            revision: said("git", &["describe", "--always", "--dirty"]),
            load: fs::read_to_string("/proc/loadavg")?.trim().to_owned(),
            versions: versions.collect(),
        })
    }
}

/// The time as `2026-01-31T12:00:00Z`.
pub fn utc_now() -> String {
    said("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"])
}

/// What a command prints; empty if it cannot.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().trim().to_owned()
}
