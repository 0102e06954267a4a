//! Files of a directory that the pod mounts: bounded, and none from elsewhere.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::tree::Tree;
use crate::plan::{IsoDirectory, Take};
use crate::resources::{ResourceError, file};

/// Most bytes that are taken; ConfigMaps and Secrets have 1 MiB at most.
const MAX_BYTES: u64 = 64 << 20;
/// Most files and directories, and how deep directories may lie in each other (ECMA-119, 6.8.2.1).
const MAX_ENTRIES: usize = 4096;
const MAX_DEPTH: usize = 7;

/// Names of answer files for Windows' setup, in any case.
const ANSWERS: [&str; 2] = ["autounattend.xml", "unattend.xml"];

/// Adds what is taken of `directory` to `tree`.
pub(super) fn read(
    volume: &str,
    directory: &IsoDirectory,
    tree: &mut Tree,
) -> Result<(), ResourceError> {
    let Some((root, path)) = open(volume, directory)? else {
        return Ok(());
    };
    let mut reader = Reader {
        volume,
        path,
        root: root.as_fd(),
        bytes: MAX_BYTES,
        entries: 0,
        answers: false,
        tree,
    };
    match &directory.take {
        Take::Named(files) => {
            for file in files {
                reader.named(file.names, file.path)?;
            }
            Ok(())
        }
        take => {
            reader.all("", 0)?;
            match *take == Take::Answers && !reader.answers {
                true => Err(reader.lacks(format!("{} or {}", ANSWERS[0], ANSWERS[1]))),
                false => Ok(()),
            }
        }
    }
}

/// The first candidate that exists.
fn open<'a>(
    volume: &str,
    directory: &'a IsoDirectory,
) -> Result<Option<(OwnedFd, &'a Path)>, ResourceError> {
    let follow = match directory.trusted {
        true => OFlags::empty(),
        false => OFlags::NOFOLLOW,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | follow;
    for path in &directory.candidates {
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(root) => return Ok(Some((root, path))),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(cannot_open(volume, path, errno)),
        }
    }
    match directory.optional {
        true => Ok(None),
        false => Err(ResourceError::NoVolume {
            name: volume.to_owned(),
            candidates: directory.candidates.clone(),
        }),
    }
}

fn cannot_open(volume: &str, path: &Path, errno: impl Into<io::Error>) -> ResourceError {
    ResourceError::Open {
        what: format!("part of volume {volume:?},"),
        path: path.to_owned(),
        source: errno.into(),
    }
}

struct Reader<'a> {
    volume: &'a str,
    path: &'a Path,
    root: BorrowedFd<'a>,
    /// How many more are taken.
    bytes: u64,
    /// Files and directories so far. A link may lead to a directory that has it.
    entries: usize,
    /// There are answers for Windows' setup.
    answers: bool,
    tree: &'a mut Tree,
}

impl Reader<'_> {
    /// Takes everything of the directory at `at`, which is empty for the root. Names that begin with two
    /// dots are the kubelet's: copies of what the other names lead to.
    fn all(&mut self, at: &str, depth: usize) -> Result<(), ResourceError> {
        let beginning = if at.is_empty() { "." } else { at };
        let opened = self.open_below(beginning, OFlags::DIRECTORY);
        let list = opened.and_then(Dir::read_from);
        let list = list.map_err(|errno| cannot_open(self.volume, &self.place(at), errno))?;
        for entry in list {
            let entry = entry.map_err(|errno| cannot_open(self.volume, self.path, errno))?;
            let Ok(name) = entry.file_name().to_str() else {
                return Err(self.wrong(at, "a name that is not UTF-8"));
            };
            if name == "." || name.starts_with("..") {
                continue;
            }
            let path = match at {
                "" => name.to_owned(),
                at => format!("{at}/{name}"),
            };
            self.answers |= depth == 0
                && ANSWERS
                    .iter()
                    .any(|answers| name.eq_ignore_ascii_case(answers));
            self.take(&path, depth)?;
        }
        Ok(())
    }

    fn take(&mut self, path: &str, depth: usize) -> Result<(), ResourceError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(self.wrong("", "too much: more than 4096 files and directories"));
        }
        let seen = self.open_below(path, OFlags::PATH);
        let seen = seen.and_then(rustix::fs::fstat);
        let seen = seen.map_err(|errno| cannot_open(self.volume, &self.place(path), errno))?;
        match FileType::from_raw_mode(seen.st_mode) {
            FileType::RegularFile => self.file(path, path),
            FileType::Directory if depth + 1 < MAX_DEPTH => self.all(path, depth + 1),
            FileType::Directory => Err(self.wrong(path, "a directory too deep in others")),
            _ => Err(self.wrong(path, "something else")),
        }
    }

    /// Takes the first of `names` that is there, as `target`.
    fn named(&mut self, names: [&str; 2], target: &str) -> Result<(), ResourceError> {
        for name in names {
            match self.open_below(name, OFlags::PATH) {
                Ok(_) => return self.file(name, target),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(cannot_open(self.volume, &self.place(name), errno)),
            }
        }
        Err(self.lacks(format!("{} or {}", names[0], names[1])))
    }

    /// Takes the file at `path` as `target`.
    fn file(&mut self, path: &str, target: &str) -> Result<(), ResourceError> {
        let read = || -> io::Result<Vec<u8>> {
            let file = File::from(self.open_below(path, OFlags::NONBLOCK | OFlags::NOCTTY)?);
            if !file.metadata()?.is_file() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let mut content = Vec::new();
            file.take(self.bytes + 1).read_to_end(&mut content)?;
            Ok(content)
        };
        let content = read().map_err(|error| cannot_open(self.volume, &self.place(path), error))?;
        let left = self.bytes.checked_sub(content.len() as u64);
        let Some(left) = left else {
            return Err(self.wrong("", "too much: more than 64 MiB"));
        };
        self.bytes = left;
        self.tree.add(target, content);
        Ok(())
    }

    /// Opens what is below the directory. Links are followed, as the kubelet makes some, but not out of it.
    fn open_below(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::NO_MAGICLINKS;
        file::open_below(self.root, Path::new(path), flags | OFlags::RDONLY, resolve)
    }

    /// A path below the directory, or its own.
    fn place(&self, at: &str) -> PathBuf {
        match at {
            "" => self.path.to_owned(),
            at => self.path.join(at),
        }
    }

    fn wrong(&self, at: &str, found: &'static str) -> ResourceError {
        ResourceError::WrongKind {
            what: format!("part of volume {:?},", self.volume),
            path: self.place(at),
            found,
            accepted: "files and directories",
        }
    }

    fn lacks(&self, wanted: String) -> ResourceError {
        ResourceError::Lacks {
            name: self.volume.to_owned(),
            path: PathBuf::from(self.path),
            wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use hadris_iso::write::{InputEntry, InputEntryKind};

    use super::*;
    use crate::plan::NamedFile;

    /// As the kubelet lays out a Secret.
    fn mounted(files: &[(&str, &str)]) -> tempfile::TempDir {
        let mount = tempfile::tempdir().expect("a directory");
        let data = mount.path().join("..2026_11_26");
        fs::create_dir(&data).expect("made");
        symlink("..2026_11_26", mount.path().join("..data")).expect("linked");
        for (name, content) in files {
            fs::write(data.join(name), content).expect("written");
            let target = format!("..data/{name}");
            symlink(target, mount.path().join(name)).expect("linked");
        }
        mount
    }

    fn take(mount: &Path, take: Take) -> Result<Vec<(String, Vec<u8>)>, ResourceError> {
        let directory = IsoDirectory {
            candidates: vec![PathBuf::from("/nonexistent"), mount.to_owned()],
            trusted: false,
            optional: false,
            take,
        };
        let mut tree = Tree::default();
        read("v", &directory, &mut tree)?;
        let file = |entry: InputEntry| match entry.kind {
            InputEntryKind::File(content) => (entry.name.to_string(), content),
            _ => (entry.name.to_string(), Vec::new()),
        };
        Ok(tree.into_entries().into_iter().map(file).collect())
    }

    #[test]
    fn the_keys_of_a_secret_and_nothing_of_the_kubelets() {
        let mount = mounted(&[("token", "t"), ("a.b", "")]);
        let files = take(mount.path(), Take::All).expect("files");
        let expected = [
            ("a.b".to_owned(), vec![]),
            ("token".to_owned(), b"t".to_vec()),
        ];
        assert_eq!(files, expected);
    }

    #[test]
    fn either_name_of_a_key() {
        let mount = mounted(&[("userData", "#cloud-config")]);
        let wanted = |names| {
            Take::Named(vec![NamedFile {
                names,
                path: "user-data",
            }])
        };
        let files = take(mount.path(), wanted(["userdata", "userData"])).expect("files");
        assert_eq!(files, [("user-data".to_owned(), b"#cloud-config".to_vec())]);
        let error = take(mount.path(), wanted(["networkdata", "networkData"]));
        let error = error.expect_err("not there").to_string();
        assert!(error.contains("networkdata or networkData"), "{error}");
    }

    #[test]
    fn answers_in_any_case() {
        let mount = mounted(&[("Autounattend.XML", "<>")]);
        take(mount.path(), Take::Answers).expect("answers");
        let mount = mounted(&[("other.xml", "<>")]);
        take(mount.path(), Take::Answers).expect_err("no answers");
    }

    /// Each directory leads to the next in ten ways, and no file is anywhere.
    #[test]
    fn directories_are_counted() {
        let mount = mounted(&[]);
        let level = |number: usize| mount.path().join(format!("..{number}"));
        for number in 0..MAX_DEPTH - 1 {
            fs::create_dir(level(number)).expect("made");
        }
        for number in 1..MAX_DEPTH - 1 {
            for way in 0..10 {
                let link = level(number - 1).join(format!("way{way}"));
                symlink(format!("../..{number}"), link).expect("linked");
            }
        }
        symlink("..0", mount.path().join("first")).expect("linked");
        let error = take(mount.path(), Take::All).expect_err("too much");
        let path = mount.path().to_string_lossy();
        let expected = format!("{path:?} is too much");
        assert!(error.to_string().contains(&expected), "{error}");
    }

    #[test]
    fn links_do_not_lead_out() {
        let mount = mounted(&[]);
        symlink("/etc/passwd", mount.path().join("x")).expect("linked");
        take(mount.path(), Take::All).expect_err("outside");
        let mount = mounted(&[]);
        symlink("../../../etc/passwd", mount.path().join("x")).expect("linked");
        take(mount.path(), Take::All).expect_err("outside");
        let missing = take(Path::new("/nonexistent"), Take::All);
        assert!(matches!(missing, Err(ResourceError::NoVolume { .. })));
    }
}
