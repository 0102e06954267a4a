//! Files that `ctl` makes and a machine writes to, since neither launcher nor vm process may make them: a dump, or the two
//! of a snapshot.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use vmm::control::Command;

use super::{CommandError, Machine, as_it_came};
use crate::commands::progress::Progress;
use crate::exit::Exit;
use crate::resources::snapshot::{RAM_FILE, STATE_FILE};

impl Machine {
    pub(super) fn snapshot(
        &self,
        command: Command,
        directory: &Path,
    ) -> Result<Exit, CommandError> {
        let fail = |source| CommandError::Snapshot {
            directory: directory.to_owned(),
            source,
        };
        let files = SnapshotFiles::create(directory).map_err(fail)?;
        let ram = directory.join(RAM_FILE);
        let done = self.talk_of((&ram, &files.ram), command, &files.descriptors());
        match done {
            Ok(_) => files.keep().map_err(fail)?,
            Err(_) => files.discard(),
        }
        done
    }

    pub(super) fn dump(&self, command: Command, path: &Path) -> Result<Exit, CommandError> {
        let fail = |source| CommandError::Dump {
            path: path.to_owned(),
            source,
        };
        let file = create(path).map_err(fail)?;
        let done = self.talk_of((path, &file), command, &[file.as_fd()]);
        match done {
            Ok(_) => file.sync_all().map_err(fail)?,
            // What cannot be removed is no whole dump and says so.
            Err(_) => drop(std::fs::remove_file(path)),
        }
        done
    }

    /// Makes a call for which the guest's RAM is written to that file.
    fn talk_of(
        &self,
        (path, file): (&Path, &File),
        command: Command,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Exit, CommandError> {
        let mut watch = Progress::new().of_file(path, file);
        self.talk(command, descriptors, |line, answer| {
            watch.end();
            as_it_came(line, answer)
        })
    }
}

/// Makes a file for the guest's memory: nobody else's to read.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    options.open(path)
}

/// New files in a directory.
struct SnapshotFiles<'a> {
    directory: &'a Path,
    is_new: bool,
    state: File,
    ram: File,
}

impl<'a> SnapshotFiles<'a> {
    /// Makes the directory if need be, and the files; a snapshot that is there stays.
    fn create(directory: &'a Path) -> io::Result<Self> {
        let is_new = !directory.is_dir();
        if is_new {
            DirBuilder::new().mode(0o700).create(directory)?;
        }
        let state = create(&directory.join(STATE_FILE))?;
        let ram = create(&directory.join(RAM_FILE));
        let ram = ram.inspect_err(|_| remove(directory, STATE_FILE))?;
        Ok(Self {
            directory,
            is_new,
            state,
            ram,
        })
    }

    /// The files in the order of the call.
    fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.state.as_fd(), self.ram.as_fd()]
    }

    /// The snapshot is whole: it survives the host's crash from now on.
    fn keep(self) -> io::Result<()> {
        self.ram.sync_all()?;
        self.state.sync_all()?;
        File::open(self.directory)?.sync_all()
    }

    /// There is no snapshot.
    fn discard(self) {
        remove(self.directory, STATE_FILE);
        remove(self.directory, RAM_FILE);
        if self.is_new {
            // Somebody may have put something else there.
            let _ = std::fs::remove_dir(self.directory);
        }
    }
}

fn remove(directory: &Path, name: &str) {
    // What cannot be removed is no whole snapshot and says so.
    let _ = std::fs::remove_file(directory.join(name));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_is_there_stays() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("new");
        let files = SnapshotFiles::create(&path).expect("made");
        let again = SnapshotFiles::create(&path).err().expect("refused");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let other = directory.path().join("other");
        SnapshotFiles::create(&other).expect("made").discard();
        assert!(!other.exists(), "nothing is left of it");
        files.keep().expect("kept");
        std::fs::remove_file(path.join(STATE_FILE)).expect("removed");
        SnapshotFiles::create(&path).err().expect("refused");
        let left: Vec<_> = std::fs::read_dir(&path).expect("directory").collect();
        assert_eq!(left.len(), 1, "only the old RAM file: {left:?}");
    }
}
