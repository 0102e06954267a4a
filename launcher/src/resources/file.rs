//! Opening files of which only the right kind will do.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use thiserror::Error;

use super::{ResourceError, scratch};
use crate::plan::BootFile;

/// What a path may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A regular file or a block device.
    Disk,
}

impl Kind {
    fn accepted(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Disk => "a file or a block device",
        }
    }
}

/// What was opened is not what it should be.
#[derive(Debug, Error)]
pub enum Unfit {
    /// It is of another kind.
    #[error("it is {found}, not {accepted}")]
    Kind {
        /// What it is.
        found: &'static str,
        /// What it may be.
        accepted: &'static str,
    },
    /// It cannot be asked.
    #[error("it cannot be looked at")]
    Call(#[from] io::Error),
}

/// How to open a path.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// What it may be.
    pub kind: Kind,
    /// Open it for writing, too.
    pub write: bool,
    /// Follow a symbolic link at the end. The contents of volumes belong to tenants, so links in
    /// them could lead to other files of the pod.
    pub follow: bool,
}

/// Where images are looked for.
pub trait Places {
    /// Opens what is at a path.
    fn open(&self, what: &str, path: &Path, access: Access) -> Result<File, ResourceError>;

    /// How long another's lock is waited for.
    fn patience(&self) -> Duration;

    /// A new file without a name, for what is gone with the machine.
    fn scratch(&self) -> io::Result<File>;
}

/// All that this process can reach.
#[derive(Clone, Copy, Debug)]
pub struct Anywhere;

/// How long a lock may be held by a machine that has just ended: the kernel gives it back only when
/// the last request in flight is done, which may be after the process is gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

impl Places for Anywhere {
    fn open(&self, what: &str, path: &Path, access: Access) -> Result<File, ResourceError> {
        open(what, path, access)
    }

    fn patience(&self) -> Duration {
        LOCK_PATIENCE
    }

    fn scratch(&self) -> io::Result<File> {
        scratch::file()
    }
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

/// Opens a path after a look at what is there, since opening some devices does something. What is
/// there may be another thing a moment later, as a FIFO, whose opening waits for its other end: so
/// nothing is waited for.
pub(super) fn open(what: &str, path: &Path, access: Access) -> Result<File, ResourceError> {
    let fail = |errno: Errno| ResourceError::Open {
        what: what.to_owned(),
        path: path.to_owned(),
        source: errno.into(),
    };
    let wrong = |found| ResourceError::WrongKind {
        what: what.to_owned(),
        path: path.to_owned(),
        found,
        accepted: access.kind.accepted(),
    };
    let stat = if access.follow {
        rustix::fs::stat(path)
    } else {
        rustix::fs::lstat(path)
    };
    let stat = stat.map_err(fail)?;
    if !access.follow && FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(fail(Errno::LOOP));
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
    let fd = rustix::fs::open(path, flags | OFlags::NONBLOCK, Mode::empty()).map_err(fail)?;
    // Once more, in case the path changed in between.
    match settle(fd, access.kind) {
        Ok(fd) => Ok(fd.into()),
        Err(Unfit::Kind { found, .. }) => Err(wrong(found)),
        Err(Unfit::Call(source)) => Err(ResourceError::Open {
            what: what.to_owned(),
            path: path.to_owned(),
            source,
        }),
    }
}

/// How often a path is tried whose `..` cannot be told to stay below, since somebody on the host moves
/// directories (`openat2(2)`, EAGAIN).
const ATTEMPTS: usize = 16;

/// Opens what is below `directory`, and nothing else, whatever links there are in `path`.
pub fn open_below(
    directory: impl AsFd,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let (flags, resolve) = (flags | OFlags::CLOEXEC, resolve | ResolveFlags::BENEATH);
    let mut last = Errno::AGAIN;
    for _ in 0..ATTEMPTS {
        match rustix::fs::openat2(&directory, path, flags, Mode::empty(), resolve) {
            Err(errno @ (Errno::AGAIN | Errno::INTR)) => last = errno,
            result => return result,
        }
    }
    Err(last)
}

/// Takes what was opened without waiting (`O_NONBLOCK`) if it is of this kind; requests to it wait from
/// now on.
pub fn settle(fd: OwnedFd, kind: Kind) -> Result<OwnedFd, Unfit> {
    fits(&fd, kind)?;
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(io::Error::from)?;
    rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK).map_err(io::Error::from)?;
    Ok(fd)
}

/// Whether a descriptor, which may be a mere path (`O_PATH`), is of this kind.
pub fn fits(fd: &OwnedFd, kind: Kind) -> Result<(), Unfit> {
    let stat = rustix::fs::fstat(fd).map_err(io::Error::from)?;
    check(&stat, kind).map_err(|found| Unfit::Kind {
        found,
        accepted: kind.accepted(),
    })
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::fs::{CWD, RenameFlags, renameat_with};

    use super::*;

    /// Enough to meet the moment between the look and the opening many times.
    const ROUNDS: u32 = 20_000;

    /// How long a machine may be busy with other things; who waits for the other end of a FIFO
    /// waits for ever.
    const PATIENCE: Duration = Duration::from_secs(120);

    /// Opens `image` while somebody swaps it with `other` all the time: what became of each round.
    fn swapped(
        image: PathBuf,
        other: PathBuf,
        write: bool,
    ) -> Vec<Result<(u64, OFlags), ResourceError>> {
        let (done, results) = mpsc::channel();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let path = image.clone();
            // Not joined if it hangs: the channel tells, and a panic would wait for it.
            std::thread::spawn(move || {
                let access = Access {
                    kind: Kind::Disk,
                    write,
                    follow: false,
                };
                let round = |_| {
                    let file = open("image", &path, access)?;
                    let inode = file.metadata().expect("an open file").ino();
                    Ok((inode, rustix::fs::fcntl_getfl(&file).expect("flags")))
                };
                let _ = done.send((0..ROUNDS).map(round).collect());
            });
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    renameat_with(CWD, &image, CWD, &other, RenameFlags::EXCHANGE)
                        .expect("both are there");
                }
            });
            let results = results.recv_timeout(PATIENCE);
            stop.store(true, Ordering::Relaxed);
            results.expect("every opening returns")
        })
    }

    fn directory_with_image() -> (tempfile::TempDir, PathBuf, u64) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let image = directory.path().join("disk.img");
        std::fs::write(&image, "image").expect("writable");
        let inode = image.metadata().expect("there").ino();
        (directory, image, inode)
    }

    /// A tenant swaps its image and a FIFO: nothing waits, only the image is opened, and requests
    /// to it wait as they should.
    #[test]
    fn fifos_are_not_waited_for() {
        for write in [false, true] {
            let (directory, image, inode) = directory_with_image();
            let fifo = directory.path().join("fifo");
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, mode, 0).expect("a FIFO");
            let (opened, refused): (Vec<_>, Vec<_>) = swapped(image, fifo, write)
                .into_iter()
                .partition(Result::is_ok);
            for (found, flags) in opened.into_iter().flatten() {
                assert_eq!(found, inode);
                assert!(!flags.contains(OFlags::NONBLOCK), "{flags:?}");
            }
            for error in refused.into_iter().filter_map(Result::err) {
                let is_fifo = matches!(
                    error,
                    ResourceError::WrongKind {
                        found: "a pipe",
                        ..
                    }
                );
                assert!(is_fifo, "{error:?}");
            }
        }
    }

    /// A tenant swaps its image and a link to what the pod can read and the tenant cannot.
    #[test]
    fn links_are_not_followed_in_a_race() {
        let (directory, image, inode) = directory_with_image();
        let secret = tempfile::NamedTempFile::new().expect("a temporary file");
        let link = directory.path().join("link");
        symlink(secret.path(), &link).expect("a link");
        let results = swapped(image, link, false);
        assert!(results.iter().any(Result::is_ok) && results.iter().any(Result::is_err));
        for (found, _) in results.into_iter().flatten() {
            assert_eq!(found, inode, "not the link's target");
        }
    }
}
