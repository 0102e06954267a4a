//! File systems: what is in a partition, and its files.

mod btrfs;
mod ext4;
mod fat;
mod inodes;
mod links;
mod xfs;

use std::io::{self, Read};

use super::disk::Window;

/// Most names of a directory that are looked at.
const MAX_NAMES: usize = 4096;

/// Most bytes of a text file that is read as a whole.
pub const MAX_TEXT: u64 = 1 << 20;

/// A file system that can be read.
pub trait FileSystem {
    /// Its name.
    fn kind(&self) -> &'static str;

    /// Its UUID as `blkid` writes it.
    fn uuid(&self) -> String;

    /// Its label, empty if it has none.
    fn label(&self) -> String;

    /// A regular file by an absolute path, links followed, and its length in bytes.
    fn open(&self, path: &str) -> io::Result<(Box<dyn Read + '_>, u64)>;

    /// Names in a directory, in no order; those that are not UTF-8 are left out.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;

    /// Whether there is a directory.
    fn is_directory(&self, path: &str) -> bool {
        self.list(path).is_ok()
    }

    /// Length of a regular file, if there is one.
    fn file_len(&self, path: &str) -> Option<u64> {
        self.open(path).ok().map(|(_, len)| len)
    }

    /// A text file; what is not UTF-8 in it is replaced.
    fn text(&self, path: &str) -> io::Result<String> {
        let (file, len) = self.open(path)?;
        if len > MAX_TEXT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = Vec::new();
        file.take(MAX_TEXT).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// What is in a partition.
pub enum Content {
    /// A file system that can be read.
    Files(Box<dyn FileSystem>),
    /// Something that is known by name, and why it cannot be read.
    Known(&'static str, String),
    /// Nothing that is known.
    Unknown,
}

/// What cannot be read, by its mark: name, place in bytes, mark.
const MARKS: [(&str, u64, &[u8]); 9] = [
    ("LUKS encryption", 0, b"LUKS\xba\xbe"),
    ("LVM", 512, b"LABELONE"),
    ("software RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("ISO 9660", 0x8001, b"CD001"),
    ("SquashFS", 0, b"hsqs"),
    ("F2FS", 1024, b"\x10\x20\xf5\xf2"),
    ("NTFS", 3, b"NTFS    "),
    ("qcow2", 0, b"QFI\xfb"),
];

/// Why nothing else is read.
const NO_READER: &str = "podvisor reads ext2, ext3, ext4, XFS, Btrfs and FAT";

/// Finds out what a window shows.
pub fn probe(window: &Window) -> Content {
    for read in [ext4::probe, xfs::probe, btrfs::probe, fat::probe] {
        match read(window) {
            Some(Ok(files)) => return Content::Files(files),
            Some(Err((name, error))) => return Content::Known(name, error.to_string()),
            None => {}
        }
    }
    let mut marks = MARKS.iter();
    match marks.find(|(_, place, mark)| window.has(*place, mark)) {
        Some((name, ..)) => Content::Known(name, NO_READER.to_owned()),
        None => Content::Unknown,
    }
}

/// What a reader says of a window: nothing if it is not its kind of file system.
type Probed = Option<Result<Box<dyn FileSystem>, (&'static str, io::Error)>>;
