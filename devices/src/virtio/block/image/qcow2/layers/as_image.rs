//! The layers as the front end sees them.

use std::io;

use tracing::error;

use super::Layered;
use crate::virtio::block::file::DiskFile;
use crate::virtio::block::image::{Access, Extent, FlushState, Image, Place};

/// Clusters that are made ready at once for one request.
const MAX_AT_ONCE: u64 = 16;

impl Image for Layered {
    fn files(&self) -> &[DiskFile] {
        &self.files
    }

    fn bytes(&self) -> u64 {
        self.end()
    }

    /// As many clusters as lie in a row.
    fn map(&self, access: Access, offset: u64, len: u64) -> Extent {
        let len = len.min(self.end() - offset);
        let mut whole = self.one(access, offset);
        while whole.len < len && whole.place != Place::Unready {
            let next = self.one(access, offset + whole.len);
            let expected = match whole.place {
                Place::File { file, offset } => Place::File {
                    file,
                    offset: offset + whole.len,
                },
                place => place,
            };
            if next.place != expected {
                break;
            }
            whole.len += next.len;
        }
        whole.len = whole.len.min(len);
        whole
    }

    fn prepare(&self, access: Access, offset: u64, len: u64) -> io::Result<Extent> {
        let mut state = self.state();
        let state = &mut *state;
        self.load(state, offset)?;
        let extent = self.one(access, offset);
        if extent.place == Place::Unready {
            let size = 1 << self.top()?.bits;
            let start = offset / size * size;
            let end = (offset + len).min(self.end());
            let is_whole = offset == start && end >= (start + size).min(self.end());
            match access {
                Access::Zero if is_whole && self.top()?.version >= 3 => {
                    self.mark_zero(state, start)?;
                }
                Access::Write => {
                    let end = end.min(start + MAX_AT_ONCE * size);
                    let starts = (start..end).step_by(size as usize);
                    for (count, start) in starts.enumerate() {
                        match self.make_place(state, start) {
                            // The first is enough; the next has its own error.
                            Err(_) if count > 0 => break,
                            made => made?,
                        }
                    }
                    // Those after the first may have pushed its table out.
                    self.load(state, offset)?;
                }
                _ => self.make_place(state, start)?,
            }
        }
        Ok(self.map(access, offset, len))
    }

    fn flush(&self, flush: &mut FlushState) -> io::Result<Option<u16>> {
        let mut state = self.state();
        let Some(writer) = &mut state.writer else {
            return Ok(None);
        };
        let goes_on = writer.flush(&self.files[0], &self.top()?.tables, flush)?;
        Ok(goes_on.then_some(0))
    }

    fn settle(&self) -> io::Result<()> {
        let mut state = self.state();
        match &mut state.writer {
            Some(writer) => writer.settle(&self.files[0], &self.top()?.tables),
            None => Ok(()),
        }
    }

    fn writable_bytes(&self) -> u64 {
        self.end()
    }

    fn resize(&self, bytes: u64) -> io::Result<()> {
        self.grow(bytes)
    }
}

impl Drop for Layered {
    /// What is written and not flushed stays, as it does in a raw image.
    fn drop(&mut self) {
        if let Err(error) = self.settle() {
            let error = &error as &dyn std::error::Error;
            error!(error, "the last changes of a qcow2 image are lost");
        }
    }
}
