//! Whether a device's file, a disk's image, is as it was.
//!
//! A regular file that has the time of its last change still has its contents; a copy that was made with that
//! time (`cp --preserve=timestamps`) is as good. The number of a block device says nothing: another device may have it
//! after a restart, and writes leave no trace in it. So parts of the contents are compared there, and in copies.
//! A file without a name, one that the launcher made in memory, is made again for each machine: all of it is compared.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, SeekFrom, Stat, fstat, seek};
use rustix::io::pread;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What is looked at at each place, bytes; as `O_DIRECT` wants it.
const BLOCK: u64 = 4096;
/// Blocks at the beginning and the end, where partition tables and file systems say what they are and when
/// they were written last.
const EDGE: u64 = 16;
/// Blocks evenly between.
const BETWEEN: u64 = 64;

/// What a file is known by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileIdentity {
    size: u64,
    /// Of a regular file that has a name.
    inode: Option<Inode>,
    /// SHA-256 of parts of the contents, of all if it has none.
    sample: String,
}

/// A regular file and its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Inode {
    number: u64,
    device: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl FileIdentity {
    /// Of an open file.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let Found {
            size,
            inode,
            is_whole,
        } = inspect(file.as_fd())?;
        let sample = sample(file.as_fd(), size, is_whole)?;
        Ok(Self {
            size,
            inode,
            sample,
        })
    }

    /// What is otherwise in `file` now.
    pub fn difference(&self, file: impl AsFd) -> io::Result<Option<&'static str>> {
        let Found {
            size,
            inode,
            is_whole,
        } = inspect(file.as_fd())?;
        if size != self.size {
            return Ok(Some("size"));
        }
        match (self.inode, inode) {
            (Some(then), Some(now)) if then == now => return Ok(None),
            (Some(then), Some(now)) if then.modified == now.modified => {}
            (None, None) => {}
            (Some(_), Some(_)) => return Ok(Some("contents")),
            _ => return Ok(Some("file")),
        }
        let same = sample(file.as_fd(), size, is_whole)? == self.sample;
        Ok((!same).then_some("contents"))
    }
}

/// What a file says of itself.
struct Found {
    size: u64,
    inode: Option<Inode>,
    /// It has no name, so all of it is looked at.
    is_whole: bool,
}

/// Whether a file has no name any more, or never had one: it is gone when it is closed.
pub fn is_nameless(file: impl AsFd) -> io::Result<bool> {
    Ok(has_no_name(&fstat(file)?))
}

fn has_no_name(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 0
}

fn inspect(file: BorrowedFd<'_>) -> io::Result<Found> {
    let stat = fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
        return Ok(Found {
            size: seek(file, SeekFrom::End(0))?,
            inode: None,
            is_whole: false,
        });
    }
    let inode = Inode {
        number: stat.st_ino,
        device: stat.st_dev,
        modified: (
            stat.st_mtime,
            i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ),
    };
    let is_whole = has_no_name(&stat);
    Ok(Found {
        size: stat.st_size.unsigned_abs(),
        inode: (!is_whole).then_some(inode),
        is_whole,
    })
}

/// Memory as aligned as `O_DIRECT` wants it.
#[repr(align(4096))]
struct Block([u8; BLOCK as usize]);

fn sample(file: BorrowedFd<'_>, size: u64, is_whole: bool) -> io::Result<String> {
    let mut block = Box::new(Block([0; BLOCK as usize]));
    let mut digest = Sha256::new();
    let blocks = size.div_ceil(BLOCK);
    let places: Box<dyn Iterator<Item = u64>> = match is_whole {
        true => Box::new(0..blocks),
        false => Box::new(places(blocks)),
    };
    for number in places {
        let read = pread(file, &mut block.0, number * BLOCK)?;
        digest.update(&block.0[..read]);
    }
    let digest = digest.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Numbers of the blocks that are looked at, of so many.
fn places(blocks: u64) -> impl Iterator<Item = u64> {
    let edge = EDGE.min(blocks);
    let between = blocks - edge;
    let step = (between / BETWEEN).max(1);
    let last = blocks.saturating_sub(EDGE).max(edge);
    (0..edge)
        .chain((edge..last).step_by(usize::try_from(step).unwrap_or(usize::MAX)))
        .chain(last..blocks)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn changes_are_noticed_and_copies_are_known() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        let contents: Vec<u8> = (0..100 * BLOCK).map(|at| (at / 7) as u8).collect();
        fs::write(&path, &contents).expect("written");
        let open = |path| File::options().write(true).read(true).open(path);
        let file = open(&path).expect("opened");
        let time = file.metadata().and_then(|of| of.modified()).expect("time");
        let then = FileIdentity::of(&file).expect("identity");
        let difference = |file: &File| then.difference(file).expect("identity");
        assert_eq!(difference(&file), None);

        let copy_path = directory.path().join("copy");
        fs::copy(&path, &copy_path).expect("copied");
        let copy = open(&copy_path).expect("opened");
        copy.set_modified(time + Duration::from_nanos(1))
            .expect("time");
        assert_eq!(difference(&copy), Some("contents"));
        copy.set_modified(time).expect("time");
        assert_eq!(difference(&copy), None);
        // Another disk, written at the same time.
        copy.write_all_at(b"other", 0).expect("written");
        copy.set_modified(time).expect("time");
        assert_eq!(difference(&copy), Some("contents"));
        copy.set_len(100 * BLOCK + 512).expect("grown");
        assert_eq!(difference(&copy), Some("size"));

        file.write_all_at(b"disk", 0).expect("written");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("time");
        assert_eq!(difference(&file), Some("contents"));
    }

    /// A device's number is not asked.
    #[test]
    fn a_device_is_known_by_its_contents() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let file = file.as_file();
        file.set_len(1000 * BLOCK).expect("size");
        let as_device = |file: &File| FileIdentity {
            inode: None,
            ..FileIdentity::of(file).expect("identity")
        };
        let then = as_device(file);
        file.write_all_at(b"x", 7 * BLOCK).expect("written");
        assert_ne!(as_device(file), then);
        assert_eq!(then.difference(file).expect("identity"), Some("file"));
    }

    /// Made again for each machine, at another time; a byte anywhere makes another disk of it.
    #[test]
    fn what_has_no_name_is_known_by_all_of_its_contents() {
        let make = |odd: Option<u64>| {
            let file = tempfile::tempfile().expect("temporary file");
            file.set_len(1000 * BLOCK).expect("size");
            if let Some(block) = odd {
                file.write_all_at(b"x", block * BLOCK).expect("written");
            }
            file.set_modified(SystemTime::UNIX_EPOCH).expect("time");
            file
        };
        let file = make(None);
        let then = FileIdentity::of(&file).expect("identity");
        file.set_modified(SystemTime::now()).expect("time");
        for same in [&file, &make(None)] {
            assert_eq!(then.difference(same).expect("identity"), None);
        }
        for block in [0, 17, 18, 19, 999] {
            let found = then.difference(make(Some(block))).expect("identity");
            assert_eq!(found, Some("contents"), "{block}");
        }
    }

    #[test]
    fn both_edges_and_some_blocks_between_are_looked_at() {
        for blocks in [0, 1, 15, 16, 17, 31, 32, 33, 100, 1 << 20, u64::MAX >> 12] {
            let places: Vec<_> = places(blocks).collect();
            assert!(places.is_sorted_by(|a, b| a < b), "{blocks}");
            assert!(places.len() as u64 <= 2 * EDGE + 2 * BETWEEN, "{blocks}");
            assert!(places.last().is_none_or(|last| *last < blocks));
            for edge in (0..blocks.min(EDGE)).chain(blocks.saturating_sub(EDGE)..blocks) {
                assert!(places.contains(&edge), "{edge} of {blocks}");
            }
        }
    }
}
