//! The files of a snapshot that a machine is restored from.

use std::path::Path;

use vmm::control::FdRole;

use super::{Descriptors, ResourceError, file};
use crate::plan::BootFile;

/// Name of the state file in a snapshot's directory.
pub const STATE_FILE: &str = "state";
/// Name of the RAM file.
pub const RAM_FILE: &str = "ram";

/// Opens both.
pub fn open_snapshot(directory: &Path) -> Result<Descriptors, ResourceError> {
    let mut descriptors = Descriptors::default();
    for (what, name, role) in [
        ("state of the snapshot", STATE_FILE, FdRole::SnapshotState),
        ("RAM of the snapshot", RAM_FILE, FdRole::SnapshotRam),
    ] {
        let path = directory.join(name);
        let trusted = true;
        descriptors.push(
            role,
            file::open_boot_file(what, &BootFile { path, trusted })?,
        );
    }
    Ok(descriptors)
}
