//! The file for the memory of a guest that crashes.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::CommandError;
use crate::report;

/// A file that is empty unless there was a crash.
pub(super) struct CrashDump {
    path: PathBuf,
    file: File,
}

impl CrashDump {
    /// Makes the file, since the machine's user may make none. A dump that is there already is not written over: where
    /// machines are started again and again, it is the one that shows the first crash.
    pub(super) fn create(path: &Path) -> Result<Self, CommandError> {
        let open = || {
            let mut options = File::options();
            let file = options.write(true).create(true).truncate(false).mode(0o600);
            let file = file.open(path)?;
            match file.metadata()? {
                found if found.is_file() && found.len() == 0 => Ok(file),
                _ => Err(io::ErrorKind::AlreadyExists.into()),
            }
        };
        let file = open().map_err(fail(path))?;
        let path = path.to_owned();
        Ok(Self { path, file })
    }

    /// The machine's descriptor.
    pub(super) fn for_machine(&self) -> Result<File, CommandError> {
        self.file.try_clone().map_err(fail(&self.path))
    }

    /// Says where it is, if there is one; why there is none was said.
    pub(super) fn tell(&self) {
        // By its descriptor: a launcher whose machine has run sees no paths.
        if rustix::fs::fstat(&self.file).is_ok_and(|found| found.st_size > 0) {
            let path = &self.path;
            report::print(&format!(
                "the guest's memory and registers are in {path:?}, for gdb VMLINUX {path:?}"
            ));
        }
    }
}

fn fail(path: &Path) -> impl FnOnce(io::Error) -> CommandError {
    let path = path.to_owned();
    move |source| CommandError::Dump { path, source }
}
