//! Btrfs: its default subvolume, and those in it.

use std::io;

use lambutter::{BlockRead, Btrfs, Inode, Path};

use super::inodes::{Files, Found, Kind, Library};
use super::{FileSystem, Probed};
use crate::bootdisk::disk::Window;

pub(super) fn probe(window: &Window) -> Probed {
    if !window.has(0x1_0040, b"_BHRfS_M") {
        return None;
    }
    let opened = Btrfs::open(Reader(window.clone()), window.len()).map_err(failed);
    let files = opened.and_then(|library| {
        let (uuid, label) = identity(window)?;
        Ok(Box::new(Files::new(library, uuid, label)) as Box<dyn FileSystem>)
    });
    Some(files.map_err(|error| (Btrfs::NAME, error)))
}

struct Reader(Window);

impl BlockRead for Reader {
    type Error = io::Error;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

/// UUID and label of the superblock (Linux `include/uapi/linux/btrfs_tree.h`), which the library keeps to itself.
fn identity(window: &Window) -> io::Result<([u8; 16], String)> {
    const SUPERBLOCK: u64 = 0x1_0000;
    let (mut uuid, mut label) = ([0; 16], [0; 256]);
    window.read_at(SUPERBLOCK + 0x20, &mut uuid)?;
    window.read_at(SUPERBLOCK + 0x12b, &mut label)?;
    let label = label.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok((uuid, String::from_utf8_lossy(label).into_owned()))
}

fn failed(error: lambutter::Error) -> io::Error {
    match error {
        lambutter::Error::NotFound => io::ErrorKind::NotFound.into(),
        error => io::Error::other(error.to_string()),
    }
}

fn path(text: &str) -> io::Result<Path<'_>> {
    Path::new(text.as_bytes()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

impl Library for Btrfs<Reader> {
    const NAME: &'static str = "Btrfs";

    type Inode = Inode;

    fn find(&mut self, text: &str) -> io::Result<Found<Inode>> {
        let inode = self.resolve(path(text)?).map_err(failed)?;
        let found = self.metadata(&inode).map_err(failed)?;
        Ok(Found {
            inode,
            kind: Kind::new(found.is_file(), found.is_dir(), found.is_symlink()),
            size: found.size,
        })
    }

    fn link(&mut self, text: &str) -> io::Result<Vec<u8>> {
        self.read_link(path(text)?).map_err(failed)
    }

    fn names(&mut self, text: &str) -> io::Result<Vec<Vec<u8>>> {
        let entries = self.read_dir(path(text)?).map_err(failed)?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    fn read(&mut self, inode: &Inode, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_file_at(inode, position, buffer).map_err(failed)
    }
}
