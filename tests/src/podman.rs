//! Podman, which needs to be told what it cannot do on a machine like this.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::host;

/// No systemd runs, and hard limits cannot be raised.
pub const CONFIGURATION: &str = r#"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"#;

/// Podman with [`CONFIGURATION`], and what is to be undone in the end.
#[derive(Debug)]
pub struct Podman {
    configuration: PathBuf,
    undo: Vec<Vec<String>>,
}

impl Podman {
    /// Keeps its configuration in `dir`.
    pub fn new(dir: &Path) -> Self {
        let configuration = dir.join("containers.conf");
        fs::write(&configuration, CONFIGURATION).expect("the configuration can be written");
        let undo = Vec::new();
        Self {
            configuration,
            undo,
        }
    }

    /// Runs a command of podman's; what it prints, without the last line's end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> String {
        let configuration = format!("CONTAINERS_CONF={}", self.configuration.display());
        let printed = host("env", &[&[&configuration, "podman"], args].concat());
        printed.trim_end().to_owned()
    }

    /// What a container wrote, its standard error last.
    #[track_caller]
    pub fn log(&self, container: &str) -> String {
        let mut podman = Command::new("podman");
        podman.env("CONTAINERS_CONF", &self.configuration);
        let output = podman.args(["logs", container]).output();
        let output = output.expect("podman is there");
        let parts = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&parts).into_owned()
    }

    /// Makes an image of a directory, with more options of `podman import`.
    #[track_caller]
    pub fn import(&self, root: &Path, more: &[&str], name: &str) {
        let (root, tar) = (root.to_string_lossy(), root.with_extension("tar"));
        let tar = tar.to_string_lossy();
        host("tar", &["-C", &root, "-cf", &tar, "."]);
        self.run(&[&["import", "--quiet"], more, &[&tar, name]].concat());
    }

    /// Does `args` when this is dropped; what was said last is done first.
    pub fn in_the_end(&mut self, args: &[&str]) {
        let args = args.iter().map(|word| word.to_string());
        self.undo.push(args.collect());
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for args in self.undo.iter().rev() {
            let mut podman = Command::new("podman");
            podman.env("CONTAINERS_CONF", &self.configuration);
            // Left behind at worst; a panic here would hide the one that may be under way.
            let _ = podman.args(args).stderr(Stdio::null()).output();
        }
    }
}
