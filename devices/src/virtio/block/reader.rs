//! The content of a disk for who only looks at it: what reads partitions and file systems.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use crate::virtio::block::file::AlignedBuffer;
use crate::virtio::block::image::{Image, ImageFormat, Layered, OpenImageError};
use crate::virtio::block::request::SECTOR_SIZE;

/// What is read at once and kept, bytes.
const WINDOW: usize = 64 * 1024;

/// A disk to read from, whatever its image's format and over whatever backing files.
pub struct DiskReader {
    image: Layered,
    position: u64,
    window: AlignedBuffer,
    /// Where in the disk `window` is, once it has been read.
    window_at: Option<u64>,
}

impl DiskReader {
    /// The disk of `files`, the top one first, each of its format. They need not be open for writing, and
    /// nothing is written to them.
    pub fn open(files: Vec<File>, formats: &[ImageFormat]) -> Result<Self, OpenImageError> {
        Ok(Self {
            image: Layered::open(files, formats, SECTOR_SIZE as u32, false)?,
            position: 0,
            window: AlignedBuffer::new(WINDOW),
            window_at: None,
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
        let start = self.position / WINDOW as u64 * WINDOW as u64;
        let skip = (self.position - start) as usize;
        let count = buffer.len().min(WINDOW - skip);
        let count = count.min(usize::try_from(left).unwrap_or(usize::MAX));
        if count == 0 {
            return Ok(0);
        }
        if self.window_at != Some(start) {
            self.window_at = None;
            self.image.read_at(self.window.bytes_mut(), start)?;
            self.window_at = Some(start);
        }
        buffer[..count].copy_from_slice(&self.window.bytes()[skip..skip + count]);
        self.position += count as u64;
        Ok(count)
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
