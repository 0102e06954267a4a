//! Direct I/O of buffers that the kernel would refuse: the slow path.
//!
//! Drivers align their buffers unless user space inside the guest does direct I/O of its own with
//! odd ones. Such a request is done at once on the worker, in pieces of a buffer that is allocated
//! at the first of them.

use std::io;
use std::os::unix::fs::FileExt;

use crate::virtio::block::file::AlignedBuffer;
use crate::virtio::block::image::{Access, Image, Place, resolve};
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
            read(image, piece, offset + u64::from(at))?;
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
            write(image, piece, offset + u64::from(at))?;
        }
        Ok(())
    }
}

/// Reads `bytes` at `offset` of the disk, from wherever they are.
fn read(image: &dyn Image, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let extent = resolve(image, Access::Read, offset, bytes.len() as u64)?;
        let (part, rest) = bytes.split_at_mut(extent.len as usize);
        match extent.place {
            Place::File { file, offset } => {
                image.files()[usize::from(file)]
                    .file()
                    .read_exact_at(part, offset)?;
            }
            _ => part.fill(0),
        }
        (bytes, offset) = (rest, offset + extent.len);
    }
    Ok(())
}

/// Writes `bytes` at `offset` of the disk, to wherever they belong.
fn write(image: &dyn Image, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let extent = resolve(image, Access::Write, offset, bytes.len() as u64)?;
        let (part, rest) = bytes.split_at(extent.len as usize);
        if let Place::File { file, offset } = extent.place {
            image.files()[usize::from(file)]
                .file()
                .write_all_at(part, offset)?;
        }
        (bytes, offset) = (rest, offset + extent.len);
    }
    Ok(())
}

/// Cuts `len` bytes into pieces of at most [`CHUNK`]: where each starts, and its length.
fn pieces(len: u32) -> impl Iterator<Item = (u32, usize)> {
    (0..len)
        .step_by(CHUNK)
        .map(move |at| (at, CHUNK.min((len - at) as usize)))
}
