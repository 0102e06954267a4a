//! Disk images and checksums.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::host;

/// A MiB.
pub const MIB: usize = 1 << 20;

/// Makes an image of zeros that takes no space.
pub fn zeros(dir: &Path, name: &str, bytes: usize) -> PathBuf {
    let path = dir.join(name);
    let file = File::create(&path).expect("an image can be made");
    file.set_len(bytes as u64).expect("an image can grow");
    path
}

/// Makes an image of [`pattern`].
pub fn filled(dir: &Path, name: &str, bytes: usize) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, pattern(bytes)).expect("an image can be written");
    path
}

/// Bytes without a power-of-two period, the ones that the test guest sends.
pub fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i + i / 251) as u8).collect()
}

/// What is in an image.
pub fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("an image can be read")
}

/// SHA-256 of a file in hexadecimal digits.
pub fn sha256(path: &Path) -> String {
    let output = host("sha256sum", &["-b", &path.to_string_lossy()]);
    output.split(' ').next().unwrap_or_default().to_owned()
}
