//! File systems whose library finds files as inodes and follows no links.

use std::cell::RefCell;
use std::io::{self, Read};

use uuid::Uuid;

use super::{FileSystem, MAX_NAMES, links};

/// What such a library does. All paths are absolute.
pub(super) trait Library {
    /// Name of the file system.
    const NAME: &'static str;

    /// A file, directory or link.
    type Inode;

    /// What is at a path.
    fn find(&mut self, path: &str) -> io::Result<Found<Self::Inode>>;

    /// Where the link at a path leads.
    fn link(&mut self, path: &str) -> io::Result<Vec<u8>>;

    /// Names in the directory at a path.
    fn names(&mut self, path: &str) -> io::Result<Vec<Vec<u8>>>;

    /// Reads a file from a position on.
    fn read(&mut self, inode: &Self::Inode, position: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

/// What is at a path.
pub(super) struct Found<I> {
    pub(super) inode: I,
    pub(super) kind: Kind,
    /// Bytes of a file, or of a link's target.
    pub(super) size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Link,
    Other,
}

impl Kind {
    /// Of what a library says of an inode.
    pub(super) fn new(is_file: bool, is_directory: bool, is_link: bool) -> Self {
        match (is_file, is_directory, is_link) {
            (true, ..) => Self::File,
            (_, true, _) => Self::Directory,
            (.., true) => Self::Link,
            _ => Self::Other,
        }
    }
}

/// A file system of such a library.
pub(super) struct Files<L> {
    library: RefCell<L>,
    uuid: Uuid,
    label: String,
}

impl<L: Library> Files<L> {
    pub(super) fn new(library: L, uuid: [u8; 16], label: String) -> Self {
        Self {
            library: RefCell::new(library),
            uuid: Uuid::from_bytes(uuid),
            label,
        }
    }

    /// The path without links.
    fn follow(&self, path: &str) -> io::Result<String> {
        links::follow(path, |path| {
            let mut library = self.library.borrow_mut();
            let found = library.find(path)?;
            if found.kind != Kind::Link {
                return Ok(None);
            }
            // Libraries make room for what the inode claims.
            if found.size > links::MAX_PATH as u64 {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let target = String::from_utf8(library.link(path)?).map_err(io::Error::other)?;
            Ok(Some(target))
        })
    }

    fn find(&self, path: &str) -> io::Result<Found<L::Inode>> {
        let path = self.follow(path)?;
        self.library.borrow_mut().find(&path)
    }
}

impl<L: Library> FileSystem for Files<L> {
    fn kind(&self) -> &'static str {
        L::NAME
    }

    fn uuid(&self) -> String {
        self.uuid.to_string()
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn open(&self, path: &str) -> io::Result<(Box<dyn Read + '_>, u64)> {
        let found = self.find(path)?;
        if found.kind != Kind::File {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = Open {
            library: &self.library,
            inode: found.inode,
            position: 0,
        };
        Ok((Box::new(file), found.size))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let path = self.follow(path)?;
        let names = self.library.borrow_mut().names(&path)?;
        let names = names.into_iter().take(MAX_NAMES);
        let names = names.filter_map(|name| String::from_utf8(name).ok());
        Ok(names.filter(|name| name != "." && name != "..").collect())
    }

    fn is_directory(&self, path: &str) -> bool {
        let found = self.find(path);
        found.is_ok_and(|found| found.kind == Kind::Directory)
    }
}

/// An open file.
struct Open<'a, L: Library> {
    library: &'a RefCell<L>,
    inode: L::Inode,
    position: u64,
}

impl<L: Library> Read for Open<'_, L> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut library = self.library.borrow_mut();
        let count = library.read(&self.inode, self.position, buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that says how long it is.
    struct Claims(u64);

    impl Library for Claims {
        const NAME: &'static str = "claims";
        type Inode = ();

        fn find(&mut self, path: &str) -> io::Result<Found<()>> {
            let kind = match path {
                "/link" => Kind::Link,
                _ => Kind::File,
            };
            let size = self.0;
            Ok(Found {
                inode: (),
                kind,
                size,
            })
        }

        fn link(&mut self, _: &str) -> io::Result<Vec<u8>> {
            assert!(self.0 <= 4096, "it would make room for {} bytes", self.0);
            Ok(b"file".to_vec())
        }

        fn names(&mut self, _: &str) -> io::Result<Vec<Vec<u8>>> {
            Ok(vec![b"..".to_vec(), b"a".to_vec(), vec![0xff]])
        }

        fn read(&mut self, _: &(), _: u64, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }
    }

    #[test]
    fn no_link_is_read_that_is_longer_than_any_path() {
        let files = |len| Files::new(Claims(len), [0; 16], String::new());
        assert_eq!(files(4).file_len("/link"), Some(4));
        assert_eq!(files(1 << 40).file_len("/link"), None);
        assert_eq!(files(1 << 40).file_len("/file"), Some(1 << 40));
        assert_eq!(files(4).list("/").expect("names"), ["a"]);
    }
}
