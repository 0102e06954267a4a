//! A block device that can become larger.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::NamedTempFile;

use crate::host;

/// A loop device over a file of zeros. Gone when dropped.
pub struct LoopDevice {
    file: NamedTempFile,
    path: String,
}

impl LoopDevice {
    /// One of so many bytes, in blocks of so many.
    #[track_caller]
    pub fn new(bytes: u64, block: u32) -> Self {
        let file = NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(bytes).expect("room");
        let of = file.path().to_str().expect("UTF-8");
        let block = block.to_string();
        let path = host(
            "losetup",
            &["--find", "--show", "--sector-size", &block, of],
        );
        let path = path.trim().to_owned();
        Self { file, path }
    }

    /// Makes a node for it, which belongs to KubeVirt's user.
    #[track_caller]
    pub fn make_node(&self, path: &Path) {
        let device = File::open(&self.path).and_then(|device| device.metadata());
        let device = device.expect("it is there").rdev();
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, path, FileType::BlockDevice, mode, device).expect("root may make devices");
        chown(path, Some(107), Some(107)).expect("root may give files away");
    }

    /// Makes it larger, and tells the kernel.
    #[track_caller]
    pub fn grow(&self, bytes: u64) {
        self.file.as_file().set_len(bytes).expect("room");
        host("losetup", &["--set-capacity", &self.path]);
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // Whoever has it open keeps it until then.
        host("losetup", &["--detach", &self.path]);
    }
}
