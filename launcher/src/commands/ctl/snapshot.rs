//! The two files of a snapshot, which `ctl` makes: neither launcher nor vm process may.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::resources::snapshot::{RAM_FILE, STATE_FILE};

/// New files in a directory.
pub(super) struct SnapshotFiles<'a> {
    directory: &'a Path,
    state: File,
    ram: File,
}

impl<'a> SnapshotFiles<'a> {
    /// Makes the directory if need be, and the files; a snapshot that is there stays.
    pub(super) fn create(directory: &'a Path) -> io::Result<Self> {
        if !directory.is_dir() {
            DirBuilder::new().mode(0o700).create(directory)?;
        }
        let create = |name: &str| {
            let mut options = OpenOptions::new();
            // The guest's memory: nobody else's to read.
            let options = options.write(true).create_new(true).mode(0o600);
            options.open(directory.join(name))
        };
        let state = create(STATE_FILE)?;
        let ram = create(RAM_FILE).inspect_err(|_| remove(directory, STATE_FILE))?;
        Ok(Self {
            directory,
            state,
            ram,
        })
    }

    /// The files in the order of the call.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.state.as_fd(), self.ram.as_fd()]
    }

    /// The snapshot is whole: it survives the host's crash from now on.
    pub(super) fn keep(self) -> io::Result<()> {
        self.ram.sync_all()?;
        self.state.sync_all()?;
        File::open(self.directory)?.sync_all()
    }

    /// There is no snapshot.
    pub(super) fn discard(self) {
        remove(self.directory, STATE_FILE);
        remove(self.directory, RAM_FILE);
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
        files.keep().expect("kept");
        std::fs::remove_file(path.join(STATE_FILE)).expect("removed");
        SnapshotFiles::create(&path).err().expect("refused");
        let left: Vec<_> = std::fs::read_dir(&path).expect("directory").collect();
        assert_eq!(left.len(), 1, "only the old RAM file: {left:?}");
    }
}
