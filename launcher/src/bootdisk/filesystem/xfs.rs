//! XFS. A log that was not written back is read as after its replay.

use std::io;

use lamxfs::{BlockRead, Inode, Path, Xfs};

use super::inodes::{Files, Found, Kind, Library};
use super::{FileSystem, Probed};
use crate::bootdisk::disk::Window;

pub(super) fn probe(window: &Window) -> Probed {
    if !window.has(0, b"XFSB") {
        return None;
    }
    let opened = Xfs::open(Reader(window.clone()), window.len()).map_err(failed);
    let files = opened.map(|library| {
        let (uuid, label) = (library.uuid(), library.label());
        let label = label.unwrap_or_default().to_owned();
        Box::new(Files::new(library, uuid, label)) as Box<dyn FileSystem>
    });
    Some(files.map_err(|error| (Xfs::NAME, error)))
}

struct Reader(Window);

impl BlockRead for Reader {
    type Error = io::Error;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

fn failed(error: lamxfs::Error) -> io::Error {
    match error {
        lamxfs::Error::NotFound { .. } => io::ErrorKind::NotFound.into(),
        error => io::Error::other(error.to_string()),
    }
}

fn path(text: &str) -> Path<'_> {
    Path::new(text.as_bytes())
}

impl Library for Xfs<Reader> {
    const NAME: &'static str = "XFS";

    type Inode = Inode;

    fn find(&mut self, text: &str) -> io::Result<Found<Inode>> {
        let inode = self.resolve(path(text)).map_err(failed)?;
        let found = self.metadata(&inode).map_err(failed)?;
        Ok(Found {
            inode,
            kind: Kind::new(found.is_file(), found.is_dir(), found.is_symlink()),
            size: found.size(),
        })
    }

    fn link(&mut self, text: &str) -> io::Result<Vec<u8>> {
        self.read_link(path(text)).map_err(failed)
    }

    fn names(&mut self, text: &str) -> io::Result<Vec<Vec<u8>>> {
        let entries = self.read_dir(path(text)).map_err(failed)?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    fn read(&mut self, inode: &Inode, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_file_at(inode, position, buffer).map_err(failed)
    }
}
