//! Undoing what was done to the pod's interfaces.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::runtime::{Builder, Runtime};

use super::NetworkError;
use super::names::Names;
use super::netlink::Netlink;
use super::passt::Passt;
use super::record::Stored;
use super::restore::restore;
use super::state::SavedInterface;

pub(super) fn runtime() -> Result<Runtime, NetworkError> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(NetworkError::Netlink)
}

/// One interface that was changed.
#[derive(Debug)]
pub(super) struct Changed {
    pub(super) names: Names,
    pub(super) saved: SavedInterface,
    pub(super) file: PathBuf,
}

impl Changed {
    pub(super) async fn undo(&self, netlink: &Netlink) -> Result<(), NetworkError> {
        restore(netlink, &self.names, &self.saved).await?;
        forget(&self.file);
        tracing::info!(interface = self.names.interface, "pod interface restored");
        Ok(())
    }
}

/// Removes a state file.
pub(super) fn forget(file: &Path) {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %file.display(), %error, "state file not removed");
        }
        _ => {}
    }
}

/// Undoes [`prepare`](fn@super::prepare). Dropping it without [`NetworkGuard::restore`] restores too, and logs errors;
/// [`NetworkGuard::keep`] does not.
#[derive(Debug)]
#[must_use = "the pod's network is restored when the guard is dropped"]
pub struct NetworkGuard {
    pub(super) changed: Vec<Changed>,
    /// Ended with the guard.
    pub(super) passt: Vec<Passt>,
    /// Removed with the guard.
    pub(super) records: Vec<Stored>,
}

impl NetworkGuard {
    /// Gives the pod its interfaces, addresses and routes back. All interfaces are tried; the first
    /// error is returned.
    pub fn restore(mut self) -> Result<(), NetworkError> {
        self.undo()
    }

    /// Leaves all as it is, for the run that restores the guest; what passt carries ends.
    pub fn keep(mut self) {
        self.changed.clear();
        self.records.drain(..).for_each(Stored::keep);
    }

    fn undo(&mut self) -> Result<(), NetworkError> {
        self.records.clear();
        let changed = std::mem::take(&mut self.changed);
        if changed.is_empty() {
            return Ok(());
        }
        runtime()?.block_on(async {
            let netlink = Netlink::connect()?;
            let mut result = Ok(());
            for changed in changed.iter().rev() {
                result = result.and(changed.undo(&netlink).await);
            }
            result
        })
    }
}

impl Drop for NetworkGuard {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the pod's network could not be restored");
        }
    }
}
