//! Disk images and checksums.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::{guest, host};

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

/// UUID of the file systems that [`ext4`] makes.
pub const UUID: &str = "0a1b2c3d-0000-4000-8000-00000000abcd";

/// Makes an ext4 file system of so many MiB with these files, without mounting anything.
#[track_caller]
pub fn ext4(dir: &Path, name: &str, files: &[(&str, &[u8])], mib: u32) -> PathBuf {
    let tree = dir.join(format!("{name}.d"));
    for (path, content) in files {
        let path = tree.join(path);
        let parent = path.parent().expect("below the tree");
        fs::create_dir_all(parent).expect("a directory can be made");
        fs::write(path, content).expect("a file can be written");
    }
    let image = dir.join(name);
    let (tree, path) = (tree.to_string_lossy(), image.to_string_lossy());
    let size = format!("{mib}M");
    let args = ["-q", "-t", "ext4", "-U", UUID, "-d", &*tree, &*path, &size];
    host("mke2fs", &args);
    image
}

/// Makes a disk with a file system and the test Linux, which boots with this command line and initrd.
#[track_caller]
pub fn linux(
    dir: &Path,
    name: &str,
    cmdline: &str,
    initrd: &[u8],
    more: &[(&str, &[u8])],
) -> PathBuf {
    let config = format!(
        "default linux\nlabel linux\n  linux /boot/vmlinux\n  initrd /boot/initrd\n  append {cmdline}\n"
    );
    let kernel = fs::read(guest::vmlinux()).expect("the kernel");
    let mut files = vec![
        ("extlinux.conf", config.as_bytes()),
        ("boot/vmlinux", &kernel),
        ("boot/initrd", initrd),
    ];
    files.extend(more);
    ext4(dir, name, &files, 64)
}

/// Puts another file in the place of one in an ext4 file system, as its guest might.
#[track_caller]
pub fn replace(image: &Path, path: &str, content: &[u8]) {
    let file = image.with_extension("new");
    fs::write(&file, content).expect("a file can be written");
    let script = image.with_extension("commands");
    let commands = format!("rm {path}\nwrite {} {path}\n", file.display());
    fs::write(&script, commands).expect("a file can be written");
    let (script, image) = (script.to_string_lossy(), image.to_string_lossy());
    host("debugfs", &["-w", "-f", &*script, &*image]);
}
