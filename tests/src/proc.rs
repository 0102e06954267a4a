//! What `/proc` tells of a process.

use std::fs;
use std::path::PathBuf;

use rustix::process::Pid;

/// A process or one of its threads.
#[derive(Clone, Debug)]
pub struct Process {
    dir: PathBuf,
}

impl Process {
    /// The process `pid`.
    pub fn new(pid: Pid) -> Self {
        let dir = format!("/proc/{}", pid.as_raw_nonzero()).into();
        Self { dir }
    }

    /// Its threads, without those of the kernel that count as its own (KVM has some); none if it
    /// is gone.
    pub fn threads(&self) -> Vec<Self> {
        let tasks = fs::read_dir(self.dir.join("task")).into_iter().flatten();
        let threads = tasks.flatten().map(|task| Self { dir: task.path() });
        threads.filter(|thread| !thread.is_of_kernel()).collect()
    }

    /// KVM's worker splits and recovers huge pages; it never returns to user space.
    fn is_of_kernel(&self) -> bool {
        self.name().starts_with("kvm-")
    }

    /// The number.
    pub fn id(&self) -> String {
        let id = self.dir.file_name().unwrap_or_default();
        id.to_string_lossy().into_owned()
    }

    /// The name; empty if it is gone.
    pub fn name(&self) -> String {
        let name = fs::read_to_string(self.dir.join("comm")).unwrap_or_default();
        name.trim().to_owned()
    }

    /// A line of `status`, its words joined by single spaces.
    #[track_caller]
    pub fn status(&self, field: &str) -> String {
        let status = self.read("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let line = line.unwrap_or_else(|| panic!("status has no {field}: {status}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Soft and hard limit of this name in `limits`.
    #[track_caller]
    pub fn limit(&self, name: &str) -> (String, String) {
        let limits = self.read("limits");
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let mut words = line.expect("a limit of this name").split_whitespace();
        let mut next = || words.next().unwrap_or_default().to_owned();
        (next(), next())
    }

    /// Where its descriptors lead, in order of their numbers.
    #[track_caller]
    pub fn descriptors(&self) -> Vec<String> {
        let fds = fs::read_dir(self.dir.join("fd")).expect("root may look");
        let mut fds: Vec<_> = fds
            .map(|fd| fd.expect("a descriptor").path())
            .map(|path| (path.file_name().map(|name| name.len()), path))
            .collect();
        fds.sort();
        let target = |path: PathBuf| fs::read_link(path).ok();
        let targets = fds.into_iter().filter_map(|(_, path)| target(path));
        targets
            .map(|path| path.to_string_lossy().into_owned())
            .collect()
    }

    /// The namespace of a kind.
    #[track_caller]
    pub fn namespace(&self, kind: &str) -> PathBuf {
        fs::read_link(self.dir.join("ns").join(kind)).expect("root may look")
    }

    /// Its children.
    #[track_caller]
    pub fn children(&self) -> Vec<String> {
        let children = self.read(&format!("task/{}/children", self.id()));
        children.split_whitespace().map(str::to_owned).collect()
    }

    /// Resident memory that no other process has mapped, KiB.
    #[track_caller]
    pub fn private_kib(&self) -> u64 {
        let rollup = self.read("smaps_rollup");
        let private = rollup.lines().filter(|line| line.starts_with("Private_"));
        let sizes = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        sizes.sum()
    }

    /// Resident memory that is of files, KiB.
    #[track_caller]
    pub fn file_kib(&self) -> u64 {
        let size = self.status("RssFile");
        let number = size
            .split(' ')
            .next()
            .and_then(|number| number.parse().ok());
        number.expect("a number")
    }

    /// A file in its directory.
    #[track_caller]
    pub fn read(&self, file: &str) -> String {
        let bytes = fs::read(self.dir.join(file)).expect("the process is there");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
