//! Files below directories, whatever the tenants who write there make of the paths.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use devices::lock::try_lock;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::OpenerError;
use crate::resources::{Access, Kind, Places, ResourceError, Unfit, fits, open_below, settle};

/// Tenants' links are not followed.
const NO_LINKS: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS);

/// What `st_blocks` counts in, bytes.
const BLOCK: u64 = 512;
/// What sizes of images are multiples of.
const MIB: u64 = 1 << 20;

/// What virt-handler has in the names of dumps.
const DUMP: &[u8] = b"memory.dump";

/// A file cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The path leads elsewhere.
    #[error("{path:?} is below none of the directories in which files may be opened")]
    Elsewhere {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refuses.
    #[error("Cannot open {path:?}")]
    Refused {
        /// The path.
        path: PathBuf,
        /// The cause; `ELOOP` for symbolic links.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{path:?} cannot be used")]
    Unfit {
        /// The path.
        path: PathBuf,
        /// What it is.
        #[source]
        source: Unfit,
    },
    /// Somebody else uses it.
    #[error("{path:?} is in use by another machine or program, which has locked it")]
    Locked {
        /// The path.
        path: PathBuf,
    },
}

/// The directories below which files are opened.
#[derive(Debug)]
pub struct Directories {
    opened: Vec<(PathBuf, OwnedFd)>,
    /// Where there is room for what is gone with the machine.
    scratch: Option<OwnedFd>,
}

impl Directories {
    /// Opens the directories.
    pub fn open(paths: &[PathBuf]) -> Result<Self, OpenerError> {
        let open = |path: &PathBuf| Ok((path.clone(), open_directory(path)?));
        Ok(Self {
            opened: paths.iter().map(open).collect::<Result<_, _>>()?,
            scratch: None,
        })
    }

    /// The same, and files without names are made in the directory `scratch`, if there is one.
    pub fn with_scratch(mut self, scratch: Option<&Path>) -> Result<Self, OpenerError> {
        self.scratch = scratch.map(open_directory).transpose()?;
        Ok(self)
    }

    /// Opens a regular file or a block device by a path that begins with one of the directories as they
    /// were given, and locks it as an image. No link is followed on the way, since who writes there
    /// may not be who owns what a link leads to.
    pub fn open_file(&self, path: &Path, read_only: bool) -> Result<OwnedFd, OpenError> {
        let file = self.open_unlocked(path, Kind::Disk, !read_only)?;
        match try_lock(&file, read_only) {
            Ok(true) => Ok(file),
            Ok(false) => Err(OpenError::Locked {
                path: path.to_owned(),
            }),
            Err(errno) => {
                tracing::warn!("cannot lock {path:?}, so nothing keeps others from it: {errno}");
                Ok(file)
            }
        }
    }

    fn open_unlocked(&self, path: &Path, kind: Kind, write: bool) -> Result<OwnedFd, OpenError> {
        let (directory, below) = self.find(path).ok_or_else(|| OpenError::Elsewhere {
            path: path.to_owned(),
        })?;
        let refused = |errno: Errno| OpenError::Refused {
            path: path.to_owned(),
            source: errno.into(),
        };
        let unfit = |source| OpenError::Unfit {
            path: path.to_owned(),
            source,
        };
        // A look first, since to open some devices does something.
        let seen = open_below(directory, below, OFlags::PATH, NO_LINKS).map_err(refused)?;
        fits(&seen, kind).map_err(unfit)?;
        let access = match write {
            true => OFlags::RDWR,
            false => OFlags::RDONLY,
        };
        // A FIFO that has come there meanwhile is not waited for.
        let flags = access | OFlags::NOCTTY | OFlags::NONBLOCK;
        let opened = open_below(directory, below, flags, NO_LINKS).map_err(refused)?;
        settle(opened, kind).map_err(unfit)
    }

    /// Makes the file of a dump as [`Directories::make_file`] does. Older ones in the same directory are removed, as KubeVirt
    /// does it: its volume has room for one.
    pub fn make_dump(&self, path: &Path) -> Result<OwnedFd, OpenError> {
        if let Some((directory, below)) = self.find(path)
            && let Some(parent) = below.parent().filter(|parent| *parent != Path::new(""))
            && let Err(errno) = remove_dumps(directory, parent)
        {
            tracing::warn!("an older dump beside {path:?} stays: {errno}");
        }
        self.make_file(path)
    }

    /// Makes a regular file, which only its owner can read, by a path like that of [`Directories::open_file`].
    pub fn make_file(&self, path: &Path) -> Result<OwnedFd, OpenError> {
        let (directory, below) = self.find(path).ok_or_else(|| OpenError::Elsewhere {
            path: path.to_owned(),
        })?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let resolve = NO_LINKS | ResolveFlags::BENEATH;
        let made = rustix::fs::openat2(directory, below, flags, Mode::RUSR | Mode::WUSR, resolve);
        made.map_err(|errno| OpenError::Refused {
            path: path.to_owned(),
            source: errno.into(),
        })
    }

    /// Makes a file longer, whoever else uses it: `bytes` long, or as long as its file system has room for. How long it is
    /// now.
    pub fn grow_file(&self, path: &Path, bytes: u64) -> Result<u64, OpenError> {
        let file = self.open_unlocked(path, Kind::File, true)?;
        grow(&file, bytes).map_err(|errno| OpenError::Refused {
            path: path.to_owned(),
            source: errno.into(),
        })
    }

    /// The directory that a path begins with, and the rest, which has names only.
    fn find<'a>(&self, path: &'a Path) -> Option<(&OwnedFd, &'a Path)> {
        let is_below = |rest: &&Path| {
            let mut components = rest.components().peekable();
            components.peek().is_some()
                && components.all(|component| matches!(component, Component::Normal(_)))
        };
        self.opened.iter().find_map(|(directory, opened)| {
            let rest = path.strip_prefix(directory).ok().filter(is_below)?;
            Some((opened, rest))
        })
    }
}

fn remove_dumps(directory: &OwnedFd, below: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY;
    let directory = open_below(directory, below, flags, NO_LINKS)?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&directory, &mut buffer);
    let mut result = Ok(());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        let is_dump = name.to_bytes().windows(DUMP.len()).any(|part| part == DUMP);
        if is_dump {
            // One that stays keeps no other.
            result = result.and(rustix::fs::unlinkat(&directory, name, AtFlags::empty()));
        }
    }
    result
}

fn open_directory(path: &Path) -> Result<OwnedFd, OpenerError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
    opened.map_err(|errno| OpenerError::Directory {
        path: path.to_owned(),
        source: errno.into(),
    })
}

fn grow(file: &OwnedFd, bytes: u64) -> rustix::io::Result<u64> {
    let (about, system) = (rustix::fs::fstat(file)?, rustix::fs::fstatfs(file)?);
    let now = u64::try_from(about.st_size).unwrap_or_default();
    let allocated = u64::try_from(about.st_blocks).unwrap_or_default() * BLOCK;
    let block_size = u64::try_from(system.f_bsize).unwrap_or_default();
    let free = system.f_bavail.saturating_mul(block_size);
    let room = allocated.saturating_add(free) / MIB * MIB;
    let bytes = bytes.min(room);
    if bytes <= now {
        return Ok(now);
    }
    rustix::fs::ftruncate(file, bytes)?;
    Ok(bytes)
}

impl Places for Directories {
    fn open(&self, what: &str, path: &Path, access: Access) -> Result<File, ResourceError> {
        let opened = self.open_unlocked(path, access.kind, access.write);
        opened.map(File::from).map_err(|error| match error {
            OpenError::Refused { path, source } => ResourceError::Open {
                what: what.to_owned(),
                path,
                source,
            },
            error => ResourceError::Beneath(error),
        })
    }

    /// Others have orders, too.
    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    fn scratch(&self) -> io::Result<File> {
        let directory = self.scratch.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::TMPFILE;
        let resolve = NO_LINKS | ResolveFlags::BENEATH;
        let made = rustix::fs::openat2(directory, ".", flags, Mode::RUSR | Mode::WUSR, resolve);
        Ok(made?.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use rustix::fs::{FileType, RenameFlags, fstat, mknodat, renameat_with};

    use super::*;

    #[test]
    fn files_are_made_where_there_are_none() {
        let place = Place::new();
        let volumes = place.root.path().join("volumes");
        let new = volumes.join("a/new");
        place.directories.make_file(&new).expect("made");
        let mode = fs::metadata(&new).expect("it is there").mode();
        assert_eq!(mode & 0o777, 0o600);
        symlink("../../made", volumes.join("a/link")).expect("a link");
        let elsewhere = place.root.path().join("made");
        for path in [
            new,
            volumes.join("a/link"),
            volumes.join("a/../../made"),
            elsewhere.clone(),
        ] {
            place.directories.make_file(&path).expect_err("refused");
        }
        assert!(!elsewhere.exists());
    }

    #[test]
    fn an_older_dump_goes_and_the_rest_stays() {
        let place = Place::new();
        let volumes = place.root.path().join("volumes");
        let dumps = ["a/vm-a-1.memory.dump", "a/x.memory.dump.part"];
        let others = ["a/notes", "a/memory", "b/vm-b-1.memory.dump", "memory.dump"];
        for name in dumps.iter().chain(&others) {
            fs::write(volumes.join(name), "").expect("writable");
        }
        fs::create_dir(volumes.join("a/old.memory.dump")).expect("writable");
        let new = volumes.join("a/vm-a-2.memory.dump");
        place.directories.make_dump(&new).expect("made");
        assert!(new.exists());
        assert!(dumps.iter().all(|name| !volumes.join(name).exists()));
        assert!(others.iter().all(|name| volumes.join(name).exists()));
        // It is the directory's own, and no dump.
        let above = volumes.join("new.memory.dump");
        place.directories.make_dump(&above).expect("made");
        assert!(volumes.join("memory.dump").exists());
    }

    #[test]
    fn files_grow_as_far_as_there_is_room() {
        let place = Place::new();
        let volumes = place.root.path().join("volumes");
        let image = volumes.join("a/disk.img");
        let grow = |bytes| place.directories.grow_file(&image, bytes).expect("grown");
        assert_eq!(grow(3 << 20), 3 << 20);
        assert_eq!(grow(1 << 20), 3 << 20, "it does not shrink");
        let all = grow(u64::MAX);
        assert!(all.is_multiple_of(1 << 20) && all < u64::MAX, "{all}");
        assert_eq!(fs::metadata(&image).expect("there").len(), all);
        for elsewhere in [
            volumes.join("a"),
            volumes.join("missing"),
            "/etc/passwd".into(),
        ] {
            let grown = place.directories.grow_file(&elsewhere, 1);
            grown.expect_err("refused");
        }
    }

    struct Place {
        root: tempfile::TempDir,
        directories: Directories,
    }

    impl Place {
        /// `volumes/a/disk.img` and `volumes/b/disk.img`; only `volumes` is given.
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a temporary directory");
            let volumes = root.path().join("volumes");
            for volume in ["a", "b"] {
                fs::create_dir_all(volumes.join(volume)).expect("writable");
                fs::write(volumes.join(volume).join("disk.img"), volume).expect("writable");
            }
            fs::write(root.path().join("secret"), "secret").expect("writable");
            let directories = Directories::open(&[volumes]).expect("there");
            Self { root, directories }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.root.path().join(path)
        }

        fn open(&self, path: &str) -> Result<OwnedFd, OpenError> {
            self.directories.open_file(&self.path(path), true)
        }

        #[track_caller]
        fn refuses(&self, path: &str, expected: Errno) {
            match self.open(path) {
                Err(OpenError::Refused { source, .. }) => {
                    assert_eq!(Errno::from_io_error(&source), Some(expected), "{path}");
                }
                other => panic!("{path}: {other:?}"),
            }
        }
    }

    #[test]
    fn files_below_are_opened_as_asked() {
        let place = Place::new();
        let path = place.path("volumes/a/disk.img");
        for (read_only, mode) in [(true, OFlags::RDONLY), (false, OFlags::RDWR)] {
            let opened = place.directories.open_file(&path, read_only);
            let flags = rustix::fs::fcntl_getfl(opened.expect("opened")).expect("flags");
            assert_eq!(flags & OFlags::RWMODE, mode);
            assert!(!flags.contains(OFlags::NONBLOCK), "requests wait");
        }
        place.refuses("volumes/a/missing.img", Errno::NOENT);
    }

    #[test]
    fn a_file_has_one_writer_or_readers() {
        let place = Place::new();
        let open = |read_only| {
            let path = place.path("volumes/a/disk.img");
            place.directories.open_file(&path, read_only)
        };
        let writer = open(false).expect("the first");
        for read_only in [false, true] {
            let error = open(read_only).expect_err("locked");
            assert!(matches!(error, OpenError::Locked { .. }), "{error:?}");
        }
        drop(writer);
        let _readers = [open(true), open(true)].map(|reader| reader.expect("together"));
    }

    #[test]
    fn what_is_elsewhere_is_not_looked_at() {
        let place = Place::new();
        for path in [
            "secret",
            "volumes",
            "volumes/",
            "volumes/../secret",
            "volumes/a/../../secret",
            "volumes/a/../b/disk.img",
            "volumes-of-others/disk.img",
        ] {
            let error = place.open(path).expect_err(path);
            assert!(
                matches!(error, OpenError::Elsewhere { .. }),
                "{path}: {error:?}"
            );
        }
        for path in ["/etc/passwd", "disk.img", "", "/"] {
            let error = place.directories.open_file(Path::new(path), true);
            let error = error.expect_err(path);
            assert!(
                matches!(error, OpenError::Elsewhere { .. }),
                "{path}: {error:?}"
            );
        }
    }

    #[test]
    fn links_lead_nowhere() {
        let place = Place::new();
        let link = |target: &str, name: &str| {
            symlink(target, place.path(name)).expect("a link");
        };
        link("../../secret", "volumes/a/out");
        link("/etc/passwd", "volumes/a/absolute");
        link("../b/disk.img", "volumes/a/sideways");
        link("../b", "volumes/a/directory");
        link("/proc/self/root", "volumes/a/magic");
        for path in [
            "volumes/a/out",
            "volumes/a/absolute",
            "volumes/a/sideways",
            "volumes/a/directory/disk.img",
            "volumes/a/magic/etc/passwd",
        ] {
            place.refuses(path, Errno::LOOP);
        }
    }

    #[test]
    fn only_files_and_block_devices() {
        let place = Place::new();
        let fifo = place.path("volumes/a/fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).expect("a FIFO");
        for path in ["volumes/a/fifo", "volumes/a"] {
            let error = place.open(path).expect_err(path);
            assert!(
                matches!(error, OpenError::Unfit { .. }),
                "{path}: {error:?}"
            );
        }
    }

    /// A tenant swaps a directory and a link all the time.
    #[test]
    fn links_lead_nowhere_in_a_race() {
        let place = Place::new();
        symlink("../b", place.path("volumes/a-link")).expect("a link");
        symlink(place.path("secret"), place.path("volumes/file-link")).expect("a link");
        let ours = fs::metadata(place.path("volumes/a/disk.img"))
            .expect("there")
            .ino();
        let done = std::sync::atomic::AtomicBool::new(false);
        let mut opened = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    for (a, b) in [("a", "a-link"), ("a/disk.img", "file-link")] {
                        let [a, b] = [a, b].map(|name| place.path(&format!("volumes/{name}")));
                        // Either may be elsewhere just now.
                        let _ = renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE);
                    }
                }
            });
            for _ in 0..20_000 {
                if let Ok(file) = place.open("volumes/a/disk.img") {
                    opened += 1;
                    let found = fstat(&file).expect("an open file").st_ino;
                    assert_eq!(found, ours, "another file than the directory's own");
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(opened > 0, "it is there half of the time");
    }
}
