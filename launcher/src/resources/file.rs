//! Opening files of which only the right kind will do.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::ResourceError;
use crate::plan::BootFile;

/// What a path may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file.
    File,
    /// A regular file or a block device.
    Disk,
}

/// How to open a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) kind: Kind,
    pub(super) write: bool,
    /// Follow a symbolic link at the end. The contents of volumes belong to tenants, so links in
    /// them could lead to other files of the pod.
    pub(super) follow: bool,
}

/// Opens the kernel or the initial RAM disk.
pub(super) fn open_boot_file(what: &str, file: &BootFile) -> Result<File, ResourceError> {
    let access = Access {
        kind: Kind::File,
        write: false,
        follow: file.trusted,
    };
    open(what, &file.path, access)
}

/// Opens a path after a look at what is there, since opening a FIFO would block.
pub(super) fn open(what: &str, path: &Path, access: Access) -> Result<File, ResourceError> {
    let fail = |errno: rustix::io::Errno| ResourceError::Open {
        what: what.to_owned(),
        path: path.to_owned(),
        source: errno.into(),
    };
    let wrong = |found| ResourceError::WrongKind {
        what: what.to_owned(),
        path: path.to_owned(),
        found,
        accepted: match access.kind {
            Kind::File => "a file",
            Kind::Disk => "a file or a block device",
        },
    };
    let stat = if access.follow {
        rustix::fs::stat(path)
    } else {
        rustix::fs::lstat(path)
    };
    let stat = stat.map_err(fail)?;
    if !access.follow && FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(fail(rustix::io::Errno::LOOP));
    }
    check(&stat, access.kind).map_err(wrong)?;
    let mode = if access.write {
        OFlags::RDWR
    } else {
        OFlags::RDONLY
    };
    let nofollow = if access.follow {
        OFlags::empty()
    } else {
        OFlags::NOFOLLOW
    };
    let flags = mode | nofollow | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(fail)?;
    // Once more, in case the path changed in between.
    check(&rustix::fs::fstat(&fd).map_err(fail)?, access.kind).map_err(wrong)?;
    Ok(fd.into())
}

fn check(stat: &Stat, kind: Kind) -> Result<(), &'static str> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::BlockDevice if kind == Kind::Disk => Ok(()),
        FileType::BlockDevice => Err("a block device"),
        FileType::Directory => Err("a directory"),
        FileType::CharacterDevice => Err("a character device"),
        FileType::Fifo => Err("a pipe"),
        FileType::Socket => Err("a socket"),
        _ => Err("something else"),
    }
}
