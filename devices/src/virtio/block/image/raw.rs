//! A raw image: the disk is the file.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::virtio::block::file::DiskFile;
use crate::virtio::block::image::{Access, Extent, FlushState, Image, Place};

/// A regular file or a block device as it is.
#[derive(Debug)]
pub(in crate::virtio::block) struct Raw {
    file: DiskFile,
    bytes: AtomicU64,
    /// A write past its end would make it larger.
    grows: bool,
}

impl Raw {
    /// All of `file`.
    pub(in crate::virtio::block) fn open(file: DiskFile) -> io::Result<Self> {
        let grows = !file.file().metadata()?.file_type().is_block_device();
        let bytes = AtomicU64::new(file.end()?);
        Ok(Self { file, bytes, grows })
    }
}

impl Image for Raw {
    fn files(&self) -> &[DiskFile] {
        slice::from_ref(&self.file)
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn map(&self, _access: Access, offset: u64, len: u64) -> Extent {
        let place = Place::File { file: 0, offset };
        Extent { place, len }
    }

    fn prepare(&self, access: Access, offset: u64, len: u64) -> io::Result<Extent> {
        Ok(self.map(access, offset, len))
    }

    fn flush(&self, state: &mut FlushState) -> io::Result<Option<u16>> {
        Ok((state.round == 0 && !state.is_durable).then_some(0))
    }

    /// The kernel has no write that fails where it would make a file larger, but for the limit on
    /// file sizes, which is one number for all disks. So the size is looked at before a burst of
    /// writes. Those that are under way when somebody cuts the file short can still make it as
    /// large as the disk, never larger; the next burst finds the end where it is.
    fn writable_bytes(&self) -> u64 {
        let bytes = self.bytes();
        if self.grows {
            // A file that cannot be looked at says why when it is written.
            self.file.known_size().unwrap_or(bytes).min(bytes)
        } else {
            bytes
        }
    }

    /// Somebody with a path has made the file larger: this process may not.
    fn resize(&self, bytes: u64) -> io::Result<()> {
        let (now, end) = (self.bytes(), self.file.end()?);
        if bytes < now || bytes > end {
            let error = format!("it has {now} bytes, and its file {end}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}
