//! Files for what is gone with the machine.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// Where KubeVirt gives a pod room for overlays.
const POD: &str = "/var/run/kubevirt-ephemeral-disks";

/// Where else there is room; not in RAM, as `/tmp` may be.
const HOST: &str = "/var/tmp";

/// What stands for a path of such a file in messages.
pub(super) const NOWHERE: &str = "(temporary)";

/// Places to look at; the first that exists is taken.
pub(super) fn directories() -> Vec<PathBuf> {
    let said = std::env::var_os("TMPDIR").filter(|said| !said.is_empty());
    let host = said.map_or_else(|| PathBuf::from(HOST), PathBuf::from);
    vec![PathBuf::from(POD), host]
}

/// Where there is room for what is gone with the machine.
pub fn directory() -> io::Result<PathBuf> {
    let found = directories().into_iter().find(|path| path.is_dir());
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// A new file that has no name: nobody else finds it, and it is gone when it is closed.
pub fn file() -> io::Result<File> {
    let directory = &directory()?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(directory, flags | OFlags::TMPFILE, mode) {
        Ok(file) => Ok(file.into()),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => named_for_a_moment(directory),
        Err(errno) => Err(errno.into()),
    }
}

/// The same on file systems that do not know such files.
fn named_for_a_moment(directory: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL;
    for attempt in 0..100 {
        let path = directory.join(format!(".podvisor-{}-{attempt}", std::process::id()));
        match rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => {
                rustix::fs::unlinkat(CWD, &path, AtFlags::empty())?;
                return Ok(file.into());
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::EXIST.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn nobody_finds_them() {
        let directory = tempfile::tempdir().expect("a directory");
        for file in [file(), named_for_a_moment(directory.path())] {
            assert_eq!(file.expect("a file").metadata().expect("open").nlink(), 0);
        }
        let left = directory.path().read_dir().expect("a directory").count();
        assert_eq!(left, 0);
    }
}
