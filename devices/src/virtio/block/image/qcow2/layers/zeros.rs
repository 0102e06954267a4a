//! Zeros that need not be read.

use std::fs::File;
use std::io;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{Found, Layered};

impl Layered {
    /// How many bytes from `offset` on, which is on the disk, are zeros, as far as that is known without reading them. May
    /// wait for tables.
    pub(in crate::virtio::block) fn zeros_at(&self, offset: u64) -> io::Result<u64> {
        match self.load(&mut self.state(), offset)? {
            (Found::Hole, len) => Ok(len),
            (Found::Here { layer, host, .. }, len) => {
                Ok(hole_at(self.files[layer].file(), host)?.min(len))
            }
            _ => Ok(0),
        }
    }
}

/// Bytes of a hole in a file, from `offset` on; none where that cannot be asked, as of a block device.
fn hole_at(file: &File, offset: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(data.saturating_sub(offset)),
        // Nothing but a hole is left.
        Err(Errno::NXIO) => Ok(u64::MAX),
        Err(Errno::INVAL) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}
