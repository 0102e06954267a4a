//! Files of a directory that the pod mounts: bounded, and none from elsewhere.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::tree::Tree;
use crate::plan::{IsoDirectory, Take};
use crate::resources::ResourceError;

/// Most bytes that are taken; ConfigMaps and Secrets have 1 MiB at most.
const MAX_BYTES: u64 = 64 << 20;
/// Most files, and how deep directories may lie in each other (ECMA-119, 6.8.2.1).
const MAX_FILES: usize = 4096;
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
        files: 0,
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
    files: usize,
    /// There are answers for Windows' setup.
    answers: bool,
    tree: &'a mut Tree,
}

impl Reader<'_> {
    /// Takes everything of the directory at `at`, which is empty for the root. Names that begin with two
    /// dots are the kubelet's: copies of what the other names lead to.
    fn all(&mut self, at: &str, depth: usize) -> Result<(), ResourceError> {
        let opened = match at {
            "" => self.root.try_clone_to_owned(),
            at => self.open_below(at, OFlags::DIRECTORY),
        };
        let fail = |error| cannot_open(self.volume, &self.path.join(at), error);
        let list = Dir::read_from(opened.map_err(fail)?).map_err(|errno| fail(errno.into()))?;
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
        let seen = self.open_below(path, OFlags::PATH);
        let seen = seen.and_then(|fd| Ok(rustix::fs::fstat(fd)?));
        let seen = seen.map_err(|error| cannot_open(self.volume, &self.path.join(path), error))?;
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
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(cannot_open(self.volume, &self.path.join(name), error));
                }
            }
        }
        Err(self.lacks(format!("{} or {}", names[0], names[1])))
    }

    /// Takes the file at `path` as `target`.
    fn file(&mut self, path: &str, target: &str) -> Result<(), ResourceError> {
        self.files += 1;
        let mut content = Vec::new();
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = self.open_below(path, flags);
        let read = opened.and_then(|fd| {
            let file = File::from(fd);
            if !file.metadata()?.is_file() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            file.take(self.bytes + 1).read_to_end(&mut content)
        });
        let read = read.map_err(|error| cannot_open(self.volume, &self.path.join(path), error))?;
        let left = self.bytes.checked_sub(read as u64);
        let Some(left) = left.filter(|_| self.files <= MAX_FILES) else {
            return Err(self.wrong("", "too much: more than 4096 files or 64 MiB"));
        };
        self.bytes = left;
        self.tree.add(target, &content);
        Ok(())
    }

    /// Opens what is below the directory. Links are followed, as the kubelet makes some, but not out of it.
    fn open_below(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(openat2(self.root, path, flags, Mode::empty(), resolve)?)
    }

    fn wrong(&self, at: &str, found: &'static str) -> ResourceError {
        ResourceError::WrongKind {
            what: format!("part of volume {:?},", self.volume),
            path: self.path.join(at),
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
