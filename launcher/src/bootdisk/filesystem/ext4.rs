//! ext2, ext3 and ext4. A journal that was not committed to the file system is read as after its replay.

use std::error::Error;
use std::io::{self, Read};

use ext4_view::{Ext4, Ext4Read};

use super::{FileSystem, MAX_NAMES, Probed};
use crate::bootdisk::disk::Window;

/// Where the superblock is, and what of it says how large the file system is (Linux
/// `Documentation/filesystems/ext4/super.rst`).
const SUPERBLOCK: u64 = 1024;
const MAGIC: [u8; 2] = [0x53, 0xef];

const NAME: &str = "ext4";

pub(super) fn probe(window: &Window) -> Probed {
    let mut superblock = [0; 1024];
    window.read_at(SUPERBLOCK, &mut superblock).ok()?;
    if superblock[0x38..0x3a] != MAGIC {
        return None;
    }
    let read = || {
        check_size(&superblock, window.len())?;
        let files = Ext4::load(Box::new(Reader(window.clone()))).map_err(io::Error::other)?;
        Ok(Box::new(Files(files)) as Box<dyn FileSystem>)
    };
    Some(read().map_err(|error| (NAME, error)))
}

/// The library makes room for what the superblock claims.
fn check_size(superblock: &[u8; 1024], len: u64) -> io::Result<()> {
    let number = |at: usize| {
        let bytes = superblock[at..at + 4].iter().rev();
        bytes.fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let is_64_bit = number(0x60) & 0x80 != 0;
    let blocks = number(4) | if is_64_bit { number(0x150) << 32 } else { 0 };
    let size = 1024_u64.checked_shl(number(0x18).min(63) as u32);
    // As many as a group of the smallest blocks has; smaller groups only make work.
    let is_sane = number(0x20) >= 256;
    let fits = size
        .and_then(|size| size.checked_mul(blocks))
        .is_some_and(|bytes| bytes <= len);
    match fits && is_sane {
        true => Ok(()),
        false => Err(io::Error::other(
            "it claims to be larger than its partition",
        )),
    }
}

struct Reader(Window);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        Ok(self.0.read_at(start, buffer)?)
    }
}

struct Files(Ext4);

impl FileSystem for Files {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn uuid(&self) -> String {
        self.0.uuid().to_string()
    }

    fn label(&self) -> String {
        self.0.label().to_str().unwrap_or_default().to_owned()
    }

    fn open(&self, path: &str) -> io::Result<(Box<dyn Read + '_>, u64)> {
        let file = self.0.open(path)?;
        let len = file.metadata().len();
        Ok((Box::new(file), len))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in self.0.read_dir(path)?.take(MAX_NAMES) {
            match entry?.file_name().as_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        Ok(names)
    }

    fn is_directory(&self, path: &str) -> bool {
        self.0.metadata(path).is_ok_and(|found| found.is_dir())
    }

    fn file_len(&self, path: &str) -> Option<u64> {
        let found = self.0.metadata(path).ok()?;
        found.file_type().is_regular_file().then(|| found.len())
    }
}
