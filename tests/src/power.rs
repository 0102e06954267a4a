//! A file system that can lose its power: ext4 on a loop device, which stops where it stands and forgets what was
//! not synced. The file below the loop device is the disk, which keeps what it was told, in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::PATIENCE;

/// Size of the disk.
const DISK: &str = "96M";

/// The file system, mounted in a mount namespace of its own, which ends with the test, however that ends.
#[derive(Debug)]
pub struct Powered {
    keeper: Child,
    disk: PathBuf,
    mounted: PathBuf,
}

impl Powered {
    /// Makes one, mounted in a directory that is empty.
    #[track_caller]
    pub fn new(dir: &Path) -> Self {
        // Ends with its standard input.
        let keeper = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare runs");
        let powered = Self {
            keeper,
            disk: dir.join("disk"),
            mounted: dir.join("mounted"),
        };
        let own = || fs::read_link("/proc/self/ns/mnt").expect("a mount namespace");
        let its = || fs::read_link(powered.namespace()).expect("a mount namespace");
        eventually("a mount namespace of its own", || own() != its());
        powered.does(&["mount", "-t", "tmpfs", "none", text(dir)]);
        powered.does(&["mkdir", text(&powered.mounted)]);
        powered.does(&["mke2fs", "-q", "-t", "ext4", text(&powered.disk), DISK]);
        powered.mount();
        powered
    }

    /// What runs a program beside the file system.
    pub fn wrapper(&self) -> Vec<String> {
        let namespace = format!("--mount={}", self.namespace().display());
        ["nsenter".to_owned(), namespace, "--".to_owned()].into()
    }

    /// A path on it, as programs beside it name it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mounted.join(name)
    }

    /// The same, as this process names it.
    pub fn from_here(&self, name: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.keeper.id());
        let below = self.mounted.strip_prefix("/").expect("an absolute path");
        Path::new(&root).join(below).join(name)
    }

    /// Runs a program beside it.
    #[track_caller]
    pub fn output(&self, words: &[&str]) -> Output {
        let wrapper = self.wrapper();
        let output = Command::new(&wrapper[0])
            .args(&wrapper[1..])
            .args(words)
            .stdin(Stdio::null())
            .output();
        output.unwrap_or_else(|error| panic!("Cannot run {words:?}: {error}"))
    }

    #[track_caller]
    fn does(&self, words: &[&str]) {
        let output = self.output(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{words:?}: {}: {errors}",
            output.status
        );
    }

    /// Makes all that is on it durable.
    #[track_caller]
    pub fn sync(&self) {
        self.does(&["sync", "--file-system", text(&self.mounted)]);
    }

    /// Stops it at once: neither its journal nor any page gets to the disk any more (`EXT4_IOC_SHUTDOWN`).
    #[track_caller]
    pub fn cut(&self) {
        self.does(&["xfs_io", "-x", "-c", "shutdown", text(&self.mounted)]);
    }

    /// Mounts it again after [`Powered::cut`], when nobody uses it any more: its journal is replayed.
    #[track_caller]
    pub fn restore(&self) {
        // Files of a dead process, and the device below them, go some time later.
        self.does(&["umount", "--lazy", text(&self.mounted)]);
        eventually("the loop device is given back", || {
            let devices = self.output(&["losetup", "--noheadings", "-j", text(&self.disk)]);
            devices.status.success() && devices.stdout.is_empty()
        });
        self.mount();
    }

    #[track_caller]
    fn mount(&self) {
        self.does(&["mount", "-o", "loop", text(&self.disk), text(&self.mounted)]);
    }

    fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/mnt", self.keeper.id()).into()
    }
}

impl Drop for Powered {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Asks every 10 ms.
#[track_caller]
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
