//! What the kernel says of processes: kin, memory, processor time.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

/// `pid` and all its descendants.
pub fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        next += 1;
        for task in tasks(pid) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{task}/children"));
            let children = children.unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    all
}

fn tasks(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// Memory of processes without guest RAM, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Proportional set size: pages that others map too count in part.
    pub pss: u64,
    /// Resident set size.
    pub rss: u64,
    /// Pages of their own that were written.
    pub private_dirty: u64,
}

impl std::ops::AddAssign for Memory {
    fn add_assign(&mut self, other: Self) {
        self.pss += other.pss;
        self.rss += other.rss;
        self.private_dirty += other.private_dirty;
    }
}

/// Memory of `pids`. Guest RAM does not count: mappings of at least `ram_kib`, and what is not to be
/// dumped, as podvisor marks its own, which has two parts.
pub fn memory(pids: &[u32], ram_kib: u64) -> Result<Memory> {
    Ok(memory_and_ram(pids, ram_kib)?.0)
}

/// [`memory`] of `pids`, and their guest RAM.
pub fn memory_and_ram(pids: &[u32], ram_kib: u64) -> Result<(Memory, Memory)> {
    let mut total = (Memory::default(), Memory::default());
    for pid in pids {
        let path = format!("/proc/{pid}/smaps");
        let smaps = fs::read_to_string(&path).with_context(|| path)?;
        let (others, ram) = split_one(&smaps, ram_kib);
        total.0 += others;
        total.1 += ram;
    }
    Ok(total)
}

/// What is not guest RAM, and what is.
fn split_one(smaps: &str, ram_kib: u64) -> (Memory, Memory) {
    let (mut others, mut ram) = (Memory::default(), Memory::default());
    let (mut size, mut mapping) = (0, Memory::default());
    for line in smaps.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let kib = || value.trim_end_matches("kB").trim().parse().unwrap_or(0);
        match key {
            "Size" => size = kib(),
            "Pss" => mapping.pss = kib(),
            "Rss" => mapping.rss = kib(),
            "Private_Dirty" => mapping.private_dirty = kib(),
            // The last line of each.
            "VmFlags" => {
                let is_ram = size >= ram_kib || value.split(' ').any(|flag| flag == "dd");
                match is_ram {
                    true => ram += mapping,
                    false => others += mapping,
                }
            }
            _ => {}
        }
    }
    (others, ram)
}

/// Processor time in nanoseconds by thread, as it is now.
#[derive(Clone, Debug, Default)]
pub struct CpuTimes(BTreeMap<u32, (String, u64)>);

impl CpuTimes {
    /// Of all threads of `pids`.
    pub fn read(pids: &[u32]) -> Self {
        let mut times = BTreeMap::new();
        for pid in pids {
            for task in tasks(*pid) {
                let dir = format!("/proc/{pid}/task/{task}");
                let name = fs::read_to_string(format!("{dir}/comm")).unwrap_or_default();
                let stat = fs::read_to_string(format!("{dir}/schedstat")).unwrap_or_default();
                let ran = stat.split(' ').next().and_then(|ns| ns.parse().ok());
                times.insert(task, (name.trim_end().to_owned(), ran.unwrap_or(0)));
            }
        }
        Self(times)
    }

    /// Time since `before` of the threads whose names `counts` accepts.
    pub fn since(&self, before: &Self, counts: impl Fn(&str) -> bool) -> u64 {
        let spent = |(task, (name, now)): (&u32, &(String, u64))| {
            let then = before.0.get(task).map_or(0, |(_, then)| *then);
            if counts(name) {
                now.saturating_sub(then)
            } else {
                0
            }
        };
        self.0.iter().map(spent).sum()
    }
}

/// A line of `/proc/meminfo` in KiB.
pub fn meminfo(key: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let value = line.and_then(|value| value.trim().trim_end_matches(" kB").parse().ok());
    value.with_context(|| format!("/proc/meminfo has no {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_does_not_count() {
        let smaps = "7f00-7f01 rw-p 00000000 00:00 0\nSize: 131072 kB\nRss: 900 kB\nPss: 900 kB\n\
                     Private_Dirty: 900 kB\nVmFlags: rd wr mr\n\
                     7f01-7f02 rw-p 0 00:00 0\nSize: 2048 kB\nRss: 500 kB\nPss: 500 kB\n\
                     Private_Dirty: 500 kB\nVmFlags: rd wr mr dd \n\
                     7f02-7f03 rw-p 0 00:00 0 [heap]\nSize: 132 kB\nRss: 40 kB\nPss: 30 kB\n\
                     Private_Dirty: 20 kB\nVmFlags: rd wr mr \n";
        let expected = Memory {
            pss: 30,
            rss: 40,
            private_dirty: 20,
        };
        let (others, ram) = split_one(smaps, 131_072);
        assert_eq!(others, expected);
        assert_eq!((ram.pss, ram.rss), (1400, 1400));
        assert_eq!(split_one(smaps, 131_073).0.pss, 930);
    }

    #[test]
    fn our_own_threads_have_used_time() {
        let times = CpuTimes::read(&family(std::process::id()));
        assert!(times.since(&CpuTimes::default(), |_| true) > 0);
        assert_eq!(times.since(&times, |_| true), 0);
    }
}
