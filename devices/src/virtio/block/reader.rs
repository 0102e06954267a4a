//! The content of a disk for who only looks at it: what reads partitions and file systems.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use crate::virtio::block::file::{AlignedBuffer, DiskFile};
use crate::virtio::block::image::{Image, ImageFormat, Layered, OpenImageError};

/// A disk to read from, whatever its image's format and over whatever backing files. Where its files are open for
/// direct I/O, what is read lies at a multiple of 4096 bytes, on the disk and in memory.
pub struct DiskReader {
    image: Layered,
    position: u64,
}

impl DiskReader {
    /// The disk of `files`, the top one first, each of its format. They need not be open for writing, and
    /// nothing is written to them; nor are flags of theirs changed, which a machine may use meanwhile.
    pub fn open(files: Vec<File>, formats: &[ImageFormat]) -> Result<Self, OpenImageError> {
        let files = files.into_iter().map(DiskFile::to_read).collect();
        Ok(Self {
            image: Layered::open(files, formats, AlignedBuffer::ALIGN as u32, false)?,
            position: 0,
        })
    }

    /// Size of the disk, bytes.
    pub fn size(&self) -> u64 {
        self.image.bytes()
    }
}

impl Read for DiskReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.size().saturating_sub(self.position);
        if left == 0 {
            return Ok(0);
        }
        self.image.read_at(buffer, self.position)?;
        let count = (buffer.len() as u64).min(left);
        self.position += count;
        Ok(count as usize)
    }
}

impl Seek for DiskReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let wanted = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.size().checked_add_signed(by),
        };
        self.position = wanted.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
