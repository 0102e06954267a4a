//! Btrfs: its default subvolume, and those in it.

use std::cell::RefCell;
use std::io::{self, Read};

use lambutter::{BlockRead, Btrfs, Path};

use super::{FileSystem, MAX_NAMES, Probed, links, uuid_text};
use crate::bootdisk::disk::Window;

const NAME: &str = "Btrfs";
const MARK: (u64, &[u8]) = (0x1_0040, b"_BHRfS_M");

pub(super) fn probe(window: &Window) -> Probed {
    let (place, mark) = MARK;
    let mut found = [0; 8];
    let found = &mut found[..mark.len()];
    window.read_at(place, found).ok()?;
    if found != mark {
        return None;
    }
    let opened = Btrfs::open(Reader(window.clone()), window.len()).map_err(failed);
    let files = opened.and_then(|files| {
        let (uuid, label) = identity(window)?;
        let files = RefCell::new(files);
        Ok(Box::new(Files { files, uuid, label }) as Box<dyn FileSystem>)
    });
    Some(files.map_err(|error| (NAME, error)))
}

struct Reader(Window);

impl BlockRead for Reader {
    type Error = io::Error;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

struct Files {
    files: RefCell<Btrfs<Reader>>,
    uuid: [u8; 16],
    label: String,
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

impl Files {
    /// The path without links.
    fn follow(&self, text: &str) -> io::Result<String> {
        links::follow(text, |text| {
            let mut files = self.files.borrow_mut();
            let inode = files.resolve(path(text)?).map_err(failed)?;
            if !files.metadata(&inode).map_err(failed)?.is_symlink() {
                return Ok(None);
            }
            let target = files.read_link(path(text)?).map_err(failed)?;
            let target = String::from_utf8(target).map_err(io::Error::other)?;
            Ok(Some(target))
        })
    }
}

impl FileSystem for Files {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn uuid(&self) -> String {
        uuid_text(&self.uuid)
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn open(&self, text: &str) -> io::Result<(Box<dyn Read + '_>, u64)> {
        let text = self.follow(text)?;
        let mut files = self.files.borrow_mut();
        let inode = files.resolve(path(&text)?).map_err(failed)?;
        let found = files.metadata(&inode).map_err(failed)?;
        if !found.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = Open {
            files: &self.files,
            inode,
            position: 0,
        };
        Ok((Box::new(file), found.size))
    }

    fn list(&self, text: &str) -> io::Result<Vec<String>> {
        let text = self.follow(text)?;
        let entries = self
            .files
            .borrow_mut()
            .read_dir(path(&text)?)
            .map_err(failed)?;
        let names = entries.into_iter().take(MAX_NAMES);
        let names = names.filter_map(|entry| String::from_utf8(entry.name).ok());
        Ok(names.filter(|name| name != "." && name != "..").collect())
    }
}

/// An open file.
struct Open<'a> {
    files: &'a RefCell<Btrfs<Reader>>,
    inode: lambutter::Inode,
    position: u64,
}

impl Read for Open<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut files = self.files.borrow_mut();
        let count = files
            .read_file_at(&self.inode, self.position, buffer)
            .map_err(failed)?;
        self.position += count as u64;
        Ok(count)
    }
}
