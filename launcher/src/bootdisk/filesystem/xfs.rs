//! XFS. A log that was not written back is read as after its replay.

use std::cell::RefCell;
use std::io::{self, Read};

use lamxfs::{BlockRead, Path, Xfs};

use super::{FileSystem, MAX_NAMES, Probed, links, uuid_text};
use crate::bootdisk::disk::Window;

const NAME: &str = "XFS";
const MARK: (u64, &[u8]) = (0, b"XFSB");

pub(super) fn probe(window: &Window) -> Probed {
    let (place, mark) = MARK;
    let mut found = [0; 8];
    let found = &mut found[..mark.len()];
    window.read_at(place, found).ok()?;
    if found != mark {
        return None;
    }
    let opened = Xfs::open(Reader(window.clone()), window.len()).map_err(failed);
    let files = opened.map(|files| {
        let uuid = files.uuid();
        let label = files.label().unwrap_or_default().to_owned();
        let files = RefCell::new(files);
        Box::new(Files { files, uuid, label }) as Box<dyn FileSystem>
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
    files: RefCell<Xfs<Reader>>,
    uuid: [u8; 16],
    label: String,
}

fn failed(error: lamxfs::Error) -> io::Error {
    match error {
        lamxfs::Error::NotFound { .. } => io::ErrorKind::NotFound.into(),
        error => io::Error::other(error.to_string()),
    }
}

fn path(text: &str) -> io::Result<Path<'_>> {
    Ok(Path::new(text.as_bytes()))
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
        Ok((Box::new(file), found.size()))
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
    files: &'a RefCell<Xfs<Reader>>,
    inode: lamxfs::Inode,
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
