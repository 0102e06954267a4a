//! Direct I/O of buffers that the kernel would refuse: the slow path.
//!
//! Drivers align their buffers unless user space inside the guest does direct I/O of its own with
//! odd ones. Such a request is done at once on the worker, in pieces of a buffer that is allocated
//! at the first of them.

use std::io;

use crate::virtio::block::file::AlignedBuffer;
use crate::virtio::block::image::{self, Image};
use crate::virtio::chain::Chain;

/// Size of the buffer; larger requests take several turns.
const CHUNK: usize = 256 * 1024;

/// An aligned buffer, made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Bounce(Option<AlignedBuffer>);

impl Bounce {
    fn bytes(&mut self) -> &mut [u8] {
        self.0
            .get_or_insert_with(|| AlignedBuffer::new(CHUNK))
            .bytes_mut()
    }

    /// Reads `len` bytes at `offset` of the image into the chain's writable buffers.
    pub(super) fn read(
        &mut self,
        image: &dyn Image,
        chain: &Chain,
        offset: u64,
        len: u32,
    ) -> io::Result<()> {
        let buffer = self.bytes();
        for (at, count) in pieces(len) {
            let piece = &mut buffer[..count];
            image::read(image, piece, offset + u64::from(at))?;
            chain.write_at(at, piece);
        }
        Ok(())
    }

    /// Writes `len` bytes from `skip` in the chain's readable buffers to `offset` of the image.
    pub(super) fn write(
        &mut self,
        image: &dyn Image,
        chain: &Chain,
        skip: u32,
        offset: u64,
        len: u32,
    ) -> io::Result<()> {
        let buffer = self.bytes();
        for (at, count) in pieces(len) {
            let piece = &mut buffer[..count];
            chain.read_at(skip + at, piece);
            image::write(image, piece, offset + u64::from(at))?;
        }
        Ok(())
    }
}

/// Cuts `len` bytes into pieces of at most [`CHUNK`]: where each starts, and its length.
fn pieces(len: u32) -> impl Iterator<Item = (u32, usize)> {
    (0..len)
        .step_by(CHUNK)
        .map(move |at| (at, CHUNK.min((len - at) as usize)))
}
