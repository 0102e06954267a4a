//! The new image: all layers of the disk as one file, which has its name when it is whole.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use devices::virtio::block::{ImageFormat, OpenImageError, flatten};
use tempfile::NamedTempFile;

use super::{CommandError, CustomizeError};
use crate::commands::progress::Progress;
use crate::resources;
use crate::supervise::Signals;

/// What may be done with the image, before the user's mask.
const MODE: u32 = 0o666;

/// An image to be.
pub(super) struct NewImage {
    path: PathBuf,
    /// Beside it.
    file: NamedTempFile,
    /// What the guest writes.
    overlay: File,
    /// What lies under that, which nobody can write to meanwhile.
    base: Vec<File>,
    formats: Vec<ImageFormat>,
}

impl NewImage {
    /// Makes what it needs, and a file beside it, so that what cannot be done is told before a guest runs.
    pub(super) fn begin(disk: &Path, path: &Path) -> Result<Self, CommandError> {
        let fail = |source| CustomizeError::New {
            path: path.to_owned(),
            source,
        };
        if path.symlink_metadata().is_ok() {
            return Err(CustomizeError::Exists(path.to_owned()).into());
        }
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let (base, formats) = resources::open_unchanged(disk)?;
        let mut file = tempfile::Builder::new();
        let file = file
            .prefix(".podvisor-")
            .permissions(Permissions::from_mode(MODE));
        Ok(Self {
            path: path.to_owned(),
            file: file.tempfile_in(directory).map_err(fail)?,
            overlay: resources::scratch_file().map_err(fail)?,
            base,
            formats,
        })
    }

    /// An empty file for what the guest writes.
    pub(super) fn overlay(&self) -> &File {
        &self.overlay
    }

    /// Writes it, and gives it its name.
    pub(super) fn finish(
        self,
        progress: &Progress,
        signals: &Signals,
    ) -> Result<(), CustomizeError> {
        let Self {
            path,
            file,
            overlay,
            base,
            formats,
        } = self;
        let fail = |source| CustomizeError::New {
            path: path.clone(),
            source,
        };
        let mut files = vec![overlay];
        files.extend(base);
        let mut all = vec![ImageFormat::Qcow2];
        all.extend(formats);
        let to = file.reopen().map_err(fail)?;
        let mut show = progress.of_writing(&path);
        let mut stopped = false;
        let written = flatten(files, &all, to, |done, of| {
            show(done, of);
            stopped |= signals.want_end();
            match stopped {
                true => Err(io::ErrorKind::Interrupted.into()),
                false => Ok(()),
            }
        });
        if stopped {
            return Err(CustomizeError::Stopped);
        }
        written.map_err(|source: OpenImageError| CustomizeError::Write {
            path: path.clone(),
            source,
        })?;
        match file.persist_noclobber(&path) {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(CustomizeError::Exists(path))
            }
            Err(error) => Err(fail(error.error)),
        }
    }
}
