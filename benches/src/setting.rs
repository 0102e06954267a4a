//! Beside whom everything is measured: a node is busy, and pods share its processors or have a quota of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::available_parallelism;

use anyhow::{Context, Result};
use clap::ValueEnum;

/// What else there is while something is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Setting {
    /// Nothing.
    #[default]
    Quiet,
    /// On each processor a process that is never idle, at nice 19.
    Noise,
    /// Each VMM with all its threads has one processor's time, of which it takes no more at once than a tenth of a second.
    Quota,
}

impl Setting {
    /// What the cases' names begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Quiet => "",
            Self::Noise => "noise/",
            Self::Quota => "quota/",
        }
    }

    /// Arranges it, until what is returned is dropped.
    pub fn enter(self) -> Result<Surroundings> {
        let mut surroundings = Surroundings::default();
        match self {
            Self::Quiet => {}
            Self::Noise => surroundings.neighbours = neighbours()?,
            Self::Quota => surroundings.group = Some(Group::new()?),
        }
        Ok(surroundings)
    }
}

/// A setting that is arranged.
#[derive(Debug, Default)]
pub struct Surroundings {
    neighbours: Vec<Child>,
    group: Option<Group>,
}

impl Surroundings {
    /// What a VMM is to be started by.
    pub fn wrapper(&self) -> Vec<String> {
        let Some(group) = &self.group else {
            return Vec::new();
        };
        let enter = r#"echo $$ > "$0" && exec "$@""#;
        let members = group.0.join("cgroup.procs").display().to_string();
        ["sh", "-c", enter, &members].map(str::to_owned).into()
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        for neighbour in &mut self.neighbours {
            let _ = neighbour.kill();
            let _ = neighbour.wait();
        }
    }
}

fn neighbours() -> Result<Vec<Child>> {
    let start = |cpu: usize| {
        Command::new("taskset")
            .args(["--cpu-list", &cpu.to_string()])
            .args(["nice", "-n", "19", "sh", "-c", "while :; do :; done"])
            .stdin(Stdio::null())
            .spawn()
            .context("Cannot run taskset")
    };
    (0..available_parallelism()?.get()).map(start).collect()
}

/// A control group with a quota, of either version.
#[derive(Debug)]
struct Group(PathBuf);

impl Group {
    fn new() -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("pv-bench-{}", std::process::id());
        let (directory, files): (_, &[_]) = match root.join("cgroup.controllers").exists() {
            true => {
                // It may be on already, or nobody may switch it: the next file tells.
                let _ = fs::write(root.join("cgroup.subtree_control"), "+cpu");
                (root.join(name), &[("cpu.max", "100000 100000")])
            }
            false => (
                root.join("cpu").join(name),
                &[
                    ("cpu.cfs_period_us", "100000"),
                    ("cpu.cfs_quota_us", "100000"),
                ],
            ),
        };
        fs::create_dir(&directory).with_context(|| format!("Cannot make {directory:?}"))?;
        let group = Self(directory);
        for (file, value) in files {
            let path = group.0.join(file);
            fs::write(&path, value).with_context(|| format!("Cannot write {path:?}"))?;
        }
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
