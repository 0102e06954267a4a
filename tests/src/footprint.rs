//! What a run takes of its host: private memory, descriptors, threads and mapped files of a process.

use std::collections::BTreeSet;
use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Pid;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(200);

/// A process at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Anonymous resident memory without guest RAM, KiB.
    pub anonymous_kib: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: u64,
}

impl Footprint {
    /// Looks at a process; `None` if it is gone.
    pub fn of(pid: Pid) -> Option<Self> {
        let proc = format!("/proc/{}", pid.as_raw_nonzero());
        let status = fs::read_to_string(format!("{proc}/status")).ok()?;
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            anonymous_kib: anonymous_kib(&fs::read_to_string(format!("{proc}/smaps")).ok()?),
            threads: value("Threads:")?,
            descriptors: fs::read_dir(format!("{proc}/fd")).ok()?.count(),
        })
    }
}

/// Anonymous memory in KiB by an `smaps`. Guest RAM is what is not to be dumped (`dd`).
fn anonymous_kib(smaps: &str) -> u64 {
    let (mut total, mut last) = (0, 0);
    for line in smaps.lines() {
        match line.split_once(':') {
            Some(("Anonymous", value)) => {
                let value = value.trim().trim_end_matches(" kB").parse();
                last = value.unwrap_or(0);
            }
            Some(("VmFlags", flags)) if !flags.split_whitespace().any(|flag| flag == "dd") => {
                total += last;
            }
            _ => {}
        }
    }
    total
}

/// Files that a process has mapped, with the permissions of each mapping.
pub fn mapped_files(pid: Pid) -> BTreeSet<String> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", pid.as_raw_nonzero()));
    let maps = maps.expect("the process runs");
    let file = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let path = words.get(5..).filter(|path| !path.is_empty())?.join(" ");
        Some(format!("{} {path}", words[1]))
    };
    // What is not a file is the stack, the heap, and the kernel's pages.
    let files = maps.lines().filter_map(file);
    files.filter(|file| !file.ends_with(']')).collect()
}

/// Looks at a process again and again.
#[derive(Debug)]
pub struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<(Footprint, Footprint)>,
}

impl Watch {
    /// Begins to look.
    #[track_caller]
    pub fn start(pid: Pid) -> Self {
        let first = Footprint::of(pid).expect("the process runs");
        let (stop, stopped) = mpsc::channel();
        let look = move || {
            let mut most = first.clone();
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let Some(now) = Footprint::of(pid) else { break };
                most.anonymous_kib = most.anonymous_kib.max(now.anonymous_kib);
                most.descriptors = most.descriptors.max(now.descriptors);
                most.threads = most.threads.max(now.threads);
            }
            (first, most)
        };
        let thread = std::thread::Builder::new().name("watch".into()).spawn(look);
        Self {
            stop,
            thread: thread.expect("a thread can be made"),
        }
    }

    /// The first look, and the most of each figure since.
    pub fn stop(self) -> (Footprint, Footprint) {
        // Fails if the process has ended, and the thread with it.
        let _ = self.stop.send(());
        self.thread.join().expect("looking does not panic")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_does_not_count() {
        let smaps = "7f00-7f01 rw-p 00000000 00:00 0\nAnonymous: 900 kB\nVmFlags: rd wr dd hg\n\
                     7f02-7f03 rw-p 0 00:00 0 [heap]\nAnonymous: 40 kB\nVmFlags: rd wr mr\n";
        assert_eq!(anonymous_kib(smaps), 40);
    }
}
