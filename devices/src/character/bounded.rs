//! A file that does not grow for ever.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

/// A file that output goes to is not made larger than this, bytes: guests write without end.
pub const FILE_LIMIT: u64 = 16 << 20;

/// A file for output. What it does not take is lost until somebody empties it, which is said once.
#[derive(Debug)]
pub(super) struct BoundedFile {
    file: OwnedFd,
    /// What it is, in words.
    what: &'static str,
    was_full: bool,
}

impl BoundedFile {
    pub(super) fn new(file: OwnedFd, what: &'static str) -> Self {
        let was_full = false;
        Self {
            file,
            what,
            was_full,
        }
    }

    /// Appends `bytes` as far as there is room.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        let error = match self.write(bytes) {
            Ok(count) if count == bytes.len() => return,
            Ok(_) => Errno::FBIG,
            Err(error) => error,
        };
        if !self.was_full {
            self.was_full = true;
            let what = self.what;
            tracing::warn!(
                limit = FILE_LIMIT,
                %error,
                "the console's {what} takes no more; output is lost until it is emptied"
            );
        }
    }

    fn write(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        let size = rustix::fs::fstat(self.file.as_fd())?.st_size;
        let room = FILE_LIMIT.saturating_sub(size.unsigned_abs());
        let len = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        rustix::io::retry_on_intr(|| rustix::io::write(&self.file, &bytes[..len]))
    }
}
