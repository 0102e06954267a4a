//! FAT12, FAT16 and FAT32.

use std::io::{self, Read};

use fatfs::{FatType, FsOptions};

use super::{FileSystem, MAX_NAMES, Probed};
use crate::bootdisk::disk::Window;

const NAME: &str = "FAT";

/// Longest path that is looked up, bytes.
const MAX_PATH: usize = 1024;

pub(super) fn probe(window: &Window) -> Probed {
    let mut sector = [0; 512];
    window.read_at(0, &mut sector).ok()?;
    let is_named = [54, 82].iter().any(|at| sector[*at..].starts_with(b"FAT"));
    if sector[510..] != [0x55, 0xaa] || !is_named {
        return None;
    }
    let read = || {
        check_size(&sector, window.len())?;
        let files = fatfs::FileSystem::new(window.clone(), FsOptions::new())?;
        Ok(Box::new(Files(files)) as Box<dyn FileSystem>)
    };
    Some(read().map_err(|error| (NAME, error)))
}

/// The library counts sectors and clusters in 32 bits and does not look whether they suffice.
fn check_size(sector: &[u8; 512], len: u64) -> io::Result<()> {
    let word = |at: usize| u64::from(u16::from_le_bytes([sector[at], sector[at + 1]]));
    let long = |at: usize| word(at) | word(at + 2) << 16;
    let either = |short: u64, long: u64| if short == 0 { long } else { short };
    let bytes = word(11);
    let total = either(word(19), long(32));
    let per_table = either(word(22), long(36));
    let entries_bytes = per_table * bytes;
    let tables = per_table * u64::from(sector[16]);
    let first = word(14) + tables + (word(17) * 32).div_ceil(bytes.max(1));
    let fits = (8..1 << 28).contains(&entries_bytes) && first < total && total * bytes <= len;
    match fits && sector[16] <= 2 {
        true => Ok(()),
        false => Err(io::Error::other(
            "it claims to be larger than its partition",
        )),
    }
}

struct Files(fatfs::FileSystem<Window>);

/// The path without its first slash; the library bounds neither its length nor its depth.
fn relative(path: &str) -> io::Result<&str> {
    let path = path.trim_matches('/');
    match path.len() <= MAX_PATH {
        true => Ok(path),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

impl FileSystem for Files {
    fn kind(&self) -> &'static str {
        match self.0.fat_type() {
            FatType::Fat12 => "FAT12",
            FatType::Fat16 => "FAT16",
            FatType::Fat32 => "FAT32",
        }
    }

    fn uuid(&self) -> String {
        let id = self.0.volume_id();
        format!("{:04X}-{:04X}", id >> 16, id & 0xffff)
    }

    fn label(&self) -> String {
        self.0.volume_label()
    }

    fn open(&self, path: &str) -> io::Result<(Box<dyn Read + '_>, u64)> {
        let path = relative(path)?;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let root = self.0.root_dir();
        let directory = match parent {
            "" => root,
            parent => root.open_dir(parent)?,
        };
        // The directory's entry has the length.
        for entry in directory.iter().take(MAX_NAMES) {
            let entry = entry?;
            let is_it = entry.file_name().eq_ignore_ascii_case(name)
                || entry.short_file_name().eq_ignore_ascii_case(name);
            if is_it && entry.is_file() {
                return Ok((Box::new(entry.to_file()), entry.len()));
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let root = self.0.root_dir();
        let directory = match relative(path)? {
            "" => root,
            path => root.open_dir(path)?,
        };
        let mut names = Vec::new();
        for entry in directory.iter().take(MAX_NAMES) {
            let name = entry?.file_name();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }
}
