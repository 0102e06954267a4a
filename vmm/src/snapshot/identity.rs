//! Whether a device's file, a disk's image, is the one that it was, and as it was.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{FileType, fstat};
use serde::{Deserialize, Serialize};

/// What a file is known by. Of a block device it is the device's number only, since writes leave no
/// trace in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileIdentity {
    inode: u64,
    device: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl FileIdentity {
    /// Of an open file.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let stat = fstat(file)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
            return Ok(Self {
                inode: 0,
                device: stat.st_rdev,
                size: 0,
                modified: (0, 0),
            });
        }
        Ok(Self {
            inode: stat.st_ino,
            device: stat.st_dev,
            size: stat.st_size.unsigned_abs(),
            modified: (
                stat.st_mtime,
                i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
            ),
        })
    }

    /// What `now` has otherwise.
    pub fn difference(&self, now: &Self) -> Option<&'static str> {
        [
            (self.inode != now.inode || self.device != now.device, "file"),
            (self.size != now.size, "size"),
            (self.modified != now.modified, "contents"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn changes_are_noticed() {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(b"disk").expect("written");
        let before = FileIdentity::of(&file).expect("identity");
        let now = FileIdentity::of(&file).expect("identity");
        assert_eq!(before.difference(&now), None);
        let other = tempfile::tempfile().expect("temporary file");
        let other = FileIdentity::of(&other).expect("identity");
        assert_eq!(before.difference(&other), Some("file"));
        file.set_len(100).expect("grown");
        let grown = FileIdentity::of(&file).expect("identity");
        assert_eq!(before.difference(&grown), Some("size"));
        let later = FileIdentity {
            modified: (before.modified.0, before.modified.1 + 1),
            ..before.clone()
        };
        assert_eq!(before.difference(&later), Some("contents"));
    }
}
