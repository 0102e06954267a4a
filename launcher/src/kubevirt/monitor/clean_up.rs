//! What must be gone when the container ends.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir};
use rustix::io::Errno;

/// Sockets by which the containers of container disks know that they are needed: they end, and with them the
/// pod, when the sockets are gone.
pub(super) struct Sockets(Option<OwnedFd>);

impl Sockets {
    /// Those of a directory, which need not be there.
    pub(super) fn open(directory: &Path) -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self(rustix::fs::openat(CWD, directory, flags, Mode::empty()).ok())
    }

    /// Removes them.
    pub(super) fn remove(self) {
        if let Some(directory) = &self.0
            && let Err(errno) = remove_below(directory)
        {
            tracing::warn!("sockets of container disks are left: {errno}");
        }
    }
}

fn remove_below(directory: &OwnedFd) -> Result<(), Errno> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        // One that stays keeps its container alone.
        if name.to_bytes().ends_with(b".sock")
            && let Err(errno) = rustix::fs::unlinkat(directory, name, AtFlags::empty())
        {
            tracing::warn!("{name:?} of the container disks is left: {errno}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_go_and_the_rest_stays() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in ["disk_0.sock", "disk_12.sock", "disk_0.img", ".sock", "sock"] {
            std::fs::write(directory.path().join(name), "").expect("writable");
        }
        // As many that cannot go as make it likely that one comes first.
        let stays: Vec<_> = (0..8).map(|index| format!("a_{index}.sock")).collect();
        for name in &stays {
            std::fs::create_dir(directory.path().join(name)).expect("writable");
        }
        Sockets::open(directory.path()).remove();
        Sockets::open(&directory.path().join("missing")).remove();
        let mut left: Vec<_> = std::fs::read_dir(directory.path())
            .expect("there")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        left.sort();
        let (_directories, rest) = left.split_at(stays.len());
        assert_eq!(rest, ["disk_0.img", "sock"]);
    }
}
