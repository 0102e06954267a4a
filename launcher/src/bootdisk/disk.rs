//! A disk, and windows on parts of it, for readers that each want one of their own.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

/// Bytes that are read at once, and what their place and memory are aligned to: images are opened
/// with `O_DIRECT` where that works.
const CHUNK: usize = 64 * 1024;

/// Chunks that are kept: the metadata of some file systems at a time.
const KEPT: usize = 32;

/// Bytes that are read of a disk at most, a read of few counted as [`LEAST`]. Far more than the largest kernel and
/// initial RAM disk, and an end to file systems that lead in circles.
const BUDGET: u64 = 2 << 30;
const LEAST: u64 = 256;

/// What a disk is read from.
pub trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// Memory for a chunk.
#[repr(align(4096))]
struct Chunk([u8; CHUNK]);

struct Chunks {
    source: Box<dyn ReadSeek>,
    len: u64,
    left: u64,
    /// By their place, the last used at the end.
    kept: VecDeque<(u64, Box<Chunk>)>,
}

/// A disk. Clones are the same disk.
#[derive(Clone)]
pub struct Disk(Rc<RefCell<Chunks>>);

impl fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Disk").field(&self.len()).finish()
    }
}

impl Disk {
    /// The disk whose content `source` is, from its beginning to its end.
    pub fn new(mut source: impl ReadSeek + 'static) -> io::Result<Self> {
        let len = source.seek(SeekFrom::End(0))?;
        Ok(Self(Rc::new(RefCell::new(Chunks {
            source: Box::new(source),
            len,
            left: BUDGET,
            kept: VecDeque::new(),
        }))))
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.0.borrow().len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads all of `buffer` at an offset in bytes.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.borrow_mut().read_at(offset, buffer)
    }

    /// The part from `start` on, cut to what there is.
    pub fn window(&self, start: u64, len: u64) -> Window {
        let start = start.min(self.len());
        Window {
            disk: self.clone(),
            start,
            len: len.min(self.len() - start),
            position: 0,
        }
    }
}

impl Chunks {
    fn read_at(&mut self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        let cost = (buffer.len() as u64).max(LEAST);
        self.left = self.left.checked_sub(cost).ok_or_else(|| {
            io::Error::other("more was read than any boot takes: it leads in circles")
        })?;
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !buffer.is_empty() {
            let place = offset - offset % CHUNK as u64;
            let from = (offset - place) as usize;
            let count = buffer.len().min(CHUNK - from);
            let (now, rest) = buffer.split_at_mut(count);
            now.copy_from_slice(&self.chunk(place)?[from..from + count]);
            offset += count as u64;
            buffer = rest;
        }
        Ok(())
    }

    fn chunk(&mut self, place: u64) -> io::Result<&[u8; CHUNK]> {
        let found = self.kept.iter().position(|(other, _)| *other == place);
        let mut chunk = match found.and_then(|index| self.kept.remove(index)) {
            Some((_, chunk)) => return Ok(&self.keep(place, chunk).0),
            None if self.kept.len() < KEPT => Box::new(Chunk([0; CHUNK])),
            None => match self.kept.pop_front() {
                Some((_, chunk)) => chunk,
                None => Box::new(Chunk([0; CHUNK])),
            },
        };
        self.source.seek(SeekFrom::Start(place))?;
        let expected = (self.len - place).min(CHUNK as u64) as usize;
        let mut filled = 0;
        while filled < expected {
            match self.source.read(&mut chunk.0[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.keep(place, chunk).0)
    }

    fn keep(&mut self, place: u64, chunk: Box<Chunk>) -> &Chunk {
        self.kept.push_back((place, chunk));
        let last = self.kept.len() - 1;
        &self.kept[last].1
    }
}

/// A part of a disk as if it were one of its own.
#[derive(Clone, Debug)]
pub struct Window {
    disk: Disk,
    start: u64,
    len: u64,
    position: u64,
}

impl Window {
    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Reads all of `buffer` at an offset in bytes.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.disk.read_at(self.start + offset, buffer)
    }

    /// Whether these bytes, few, are at an offset in bytes.
    pub fn has(&self, offset: u64, mark: &[u8]) -> bool {
        let mut found = vec![0; mark.len()];
        self.read_at(offset, &mut found).is_ok() && found == mark
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.len.saturating_sub(self.position);
        let count = left.min(buffer.len() as u64) as usize;
        self.read_at(self.position.min(self.len), &mut buffer[..count])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.len.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// For readers that could write, too, and are not to.
impl Write for Window {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn disk() -> Disk {
        let bytes: Vec<u8> = (0..3 * CHUNK + 100)
            .map(|index| (index / 7) as u8)
            .collect();
        Disk::new(Cursor::new(bytes)).expect("memory")
    }

    #[test]
    fn windows_show_their_part_and_no_more() {
        let disk = disk();
        let mut window = disk.window(CHUNK as u64 - 3, CHUNK as u64 + 10);
        let mut bytes = Vec::new();
        window.read_to_end(&mut bytes).expect("readable");
        let expected: Vec<u8> = (CHUNK - 3..2 * CHUNK + 7).map(|i| (i / 7) as u8).collect();
        assert_eq!(bytes, expected);
        assert_eq!(window.seek(SeekFrom::End(-1)).expect("inside"), 65545);
        assert_eq!(window.read(&mut [0; 8]).expect("the last byte"), 1);
        assert_eq!(window.read(&mut [0; 8]).expect("the end"), 0);
        window.seek(SeekFrom::Start(u64::MAX)).expect("no matter");
        assert_eq!(window.read(&mut [0; 8]).expect("the end"), 0);
        window.read_at(u64::MAX, &mut [0; 2]).expect_err("outside");
        window.write(&[1]).expect_err("read-only");
        assert_eq!(disk.window(u64::MAX, u64::MAX).len(), 0);
    }

    #[test]
    fn circles_end() {
        let window = disk().window(0, 4096);
        let mut reads = 0_u64;
        while window.read_at(0, &mut [0; 4]).is_ok() {
            reads += 1;
        }
        assert_eq!(reads, BUDGET / LEAST);
    }
}
