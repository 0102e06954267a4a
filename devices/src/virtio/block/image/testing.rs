//! An image for tests of what is above it: small clusters all over two files, over a backing file,
//! with nothing next to its neighbour and all of it unready at first.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::virtio::block::file::{AlignedBuffer, DiskFile};
use crate::virtio::block::image::{
    self, Access, Extent, FlushState, Image, ImageFormat, Layered, OpenImageError, Place, each_part,
};
use crate::virtio::block::{Block, BlockSpec};

/// Not a power of two, so that few guest buffers end where a cluster does.
const CLUSTER: u64 = 3 * 512;

/// The backing file is the last.
const BACKING: u16 = 2;

impl BlockSpec {
    /// A disk of `bytes` bytes that begins with what `self.file` has, which stays as it is: what is
    /// written goes to `files`, which are empty.
    pub fn build_fragmented(self, files: [File; 2], bytes: u64) -> io::Result<Block> {
        let block_size = self.options.logical_block_size;
        let settle = |file| DiskFile::settle(file, block_size, &self.lost);
        let [first, second] = files;
        let backing = settle(self.file.try_clone()?)?;
        let image = Fragmented {
            bytes,
            backed: backing.end()?,
            files: [settle(first)?, settle(second)?, backing],
            table: Mutex::new(Table {
                clusters: vec![Cluster::default(); bytes.div_ceil(CLUSTER) as usize],
                places: 0,
            }),
        };
        Ok(Block::new(&self, Box::new(image)))
    }
}

#[derive(Debug)]
struct Fragmented {
    bytes: u64,
    /// Bytes that the backing file has.
    backed: u64,
    files: [DiskFile; 3],
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    clusters: Vec<Cluster>,
    /// Places taken so far.
    places: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cluster {
    /// Somebody has asked before.
    is_known: bool,
    content: Content,
}

#[derive(Clone, Copy, Debug, Default)]
enum Content {
    #[default]
    Backing,
    Hole,
    Place {
        file: u16,
        offset: u64,
    },
}

impl Fragmented {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part of a range that is in its first cluster: which, where in it, and how long.
    fn first(&self, offset: u64, len: u64) -> (usize, u64, u64) {
        let skip = offset % CLUSTER;
        let end = (CLUSTER - skip).min(self.bytes - offset);
        ((offset / CLUSTER) as usize, skip, len.min(end))
    }

    /// What `cluster` of the disk has now.
    fn old(&self, cluster: usize, content: Content) -> io::Result<AlignedBuffer> {
        let mut bytes = AlignedBuffer::new(CLUSTER as usize);
        let at = cluster as u64 * CLUSTER;
        if matches!(content, Content::Backing) && at < self.backed {
            let len = (self.backed - at).min(CLUSTER) as usize;
            let file = self.files[usize::from(BACKING)].file();
            file.read_exact_at(&mut bytes.bytes_mut()[..len], at)?;
        }
        Ok(bytes)
    }
}

impl Image for Fragmented {
    fn files(&self) -> &[DiskFile] {
        &self.files
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn map(&self, access: Access, offset: u64, len: u64) -> Extent {
        let (index, skip, len) = self.first(offset, len);
        let cluster = self.table().clusters[index];
        let place = match cluster.content {
            _ if !cluster.is_known => Place::Unready,
            Content::Place { file, offset } => Place::File {
                file,
                offset: offset + skip,
            },
            _ if access == Access::Write => Place::Unready,
            Content::Hole => Place::Hole,
            Content::Backing if access != Access::Read => Place::Unready,
            Content::Backing if offset >= self.backed => Place::Hole,
            Content::Backing => {
                let len = len.min(self.backed - offset);
                let place = Place::File {
                    file: BACKING,
                    offset,
                };
                return Extent { place, len };
            }
        };
        Extent { place, len }
    }

    fn prepare(&self, access: Access, offset: u64, len: u64) -> io::Result<Extent> {
        let (index, _, part) = self.first(offset, len);
        let mut table = self.table();
        let places = table.places;
        let cluster = &mut table.clusters[index];
        cluster.is_known = true;
        let is_whole = part == CLUSTER;
        match (access, cluster.content) {
            (Access::Read, _) | (_, Content::Place { .. }) => {}
            (Access::Discard | Access::Zero, Content::Hole) => {}
            (Access::Discard | Access::Zero, Content::Backing) if is_whole => {
                cluster.content = Content::Hole;
            }
            (_, old) => {
                let (file, offset) = ((places % 2) as u16, places * 2 * CLUSTER);
                let bytes = self.old(index, old)?;
                self.files[usize::from(file)]
                    .file()
                    .write_all_at(bytes.bytes(), offset)?;
                cluster.content = Content::Place { file, offset };
                table.places += 1;
            }
        }
        drop(table);
        Ok(self.map(access, offset, len))
    }

    /// Both files, one after the other.
    fn flush(&self, state: &mut FlushState) -> io::Result<Option<u16>> {
        let file = state.round + u32::from(state.is_durable);
        Ok((file < 2).then_some(file as u16))
    }

    fn writable_bytes(&self) -> u64 {
        self.bytes
    }

    fn resize(&self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// All rounds of a flush; how many waits it took.
pub(super) fn flush(image: &dyn Image) -> io::Result<u32> {
    let mut state = FlushState::default();
    while let Some(file) = image.flush(&mut state)? {
        if state.is_endless() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        image.files()[usize::from(file)].sync()?;
        state.waited();
    }
    Ok(state.round)
}

/// The disk of `files`, the top one first, each of its format.
pub(super) fn layered(
    files: Vec<File>,
    formats: &[ImageFormat],
    writes: bool,
) -> Result<Layered, OpenImageError> {
    let settle = |file| DiskFile::settle(file, 512, &Arc::default());
    let files = files.into_iter().map(settle).collect::<io::Result<_>>()?;
    Layered::open(files, formats, 512, writes)
}

/// Zeroes `len` bytes at `offset`, as the front end does where the file system cannot.
pub(super) fn zero(image: &dyn Image, len: usize, offset: u64) -> io::Result<()> {
    each_part(
        image,
        Access::Zero,
        offset,
        len,
        |place, part| match place {
            Some((file, host)) => file.zero_slowly(host, part.len() as u64),
            None => Ok(()),
        },
    )
}

/// An image without a device: what the front end does with it, by calls that wait.
#[derive(Debug)]
pub struct BareImage(Layered);

impl BareImage {
    /// The disk of `files`, the top one first, each of its format.
    pub fn open(files: Vec<File>, formats: &[ImageFormat]) -> Result<Self, OpenImageError> {
        let writes = formats.first() == Some(&ImageFormat::Qcow2);
        layered(files, formats, writes).map(Self)
    }

    /// Size of the disk, bytes.
    pub fn size(&self) -> u64 {
        self.0.bytes()
    }

    /// Fills `bytes` from `offset`, which they do not reach past the end from.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        image::read(&self.0, bytes, offset)
    }

    /// Writes `bytes` to `offset`.
    pub fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        image::write(&self.0, bytes, offset)
    }

    /// Zeroes `len` bytes at `offset`.
    pub fn zero(&self, len: usize, offset: u64) -> io::Result<()> {
        zero(&self.0, len, offset)
    }

    /// Makes everything durable; how often that waited.
    pub fn flush(&self) -> io::Result<u32> {
        flush(&self.0)
    }
}
