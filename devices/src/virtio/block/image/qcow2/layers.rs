//! A disk in layers: a qcow2 image that is written to, over backing files that are not.

mod as_image;
mod growth;
mod places;
mod special;
mod zeros;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::counts::Counts;
use super::entry::{self, Cluster};
use super::header::{HEADER_BYTES, Header, HeaderError};
use super::tables::{Known, Tables};
use super::writer::Writer;
use super::{PAGE, damaged, numbers};
use crate::virtio::block::file::{AlignedBuffer, DiskFile};
use crate::virtio::block::image::{Access, Extent, ImageFormat, MAX_FILES, Place};
use thiserror::Error;

/// An image cannot be used.
#[derive(Debug, Error)]
pub enum OpenImageError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// It is not one that can be used.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// There are too many files, or none.
    #[error("it has {0} files instead of 1 to {MAX_FILES}")]
    Files(usize),
}

/// A disk of one qcow2 image or several, of which the first may be written to.
#[derive(Debug)]
pub(in crate::virtio::block) struct Layered {
    files: Vec<DiskFile>,
    layers: Vec<Layer>,
    state: Mutex<Exclusive>,
}

/// One of the files of a disk.
struct Layer {
    /// What the file has of the disk, bytes; of what lies over others, more and more.
    bytes: AtomicU64,
    /// Bytes of a block, a power of two.
    block: u64,
    /// What the file does not grow past, bytes.
    limit: AtomicU64,
    /// None for a raw image.
    qcow2: Option<Qcow2>,
}

struct Qcow2 {
    bits: u32,
    version: u32,
    tables: Tables,
}

/// What only one worker at a time may use.
struct Exclusive {
    /// None if nothing may be written.
    writer: Option<Writer>,
    /// What is in memory, by layer.
    slots: Vec<Slots>,
    /// A cluster on its way from below to the top.
    cluster: AlignedBuffer,
    /// The cluster of a layer that was uncompressed last.
    inflated: Option<(usize, u64, Vec<u8>)>,
}

/// Which tables of a layer are where in memory.
#[derive(Default)]
struct Slots {
    tenants: Vec<Option<usize>>,
    /// Where the next one goes.
    next: usize,
}

/// Where in the layers something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// At an offset of a layer's file; `owned` if the layer may be written there.
    Here {
        layer: usize,
        host: u64,
        owned: bool,
    },
    /// Nowhere: zeros.
    Hole,
    /// In this layer, by other means than reading: compressed, or the last part of a block.
    Special { layer: usize, cluster: Cluster },
    /// A table of this layer has to be read.
    Unread { layer: usize },
}

impl std::fmt::Debug for Exclusive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exclusive {{ writes: {} }}", self.writer.is_some())
    }
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let format = match self.qcow2 {
            Some(_) => "qcow2",
            None => "raw",
        };
        write!(f, "{format}({} bytes)", self.bytes())
    }
}

impl Layered {
    /// A disk of `files`, the top one first, each of its format, for blocks of `block_size` bytes. It can be
    /// written to if `writes`.
    pub(in crate::virtio::block) fn open(
        files: Vec<DiskFile>,
        formats: &[ImageFormat],
        block_size: u32,
        writes: bool,
    ) -> Result<Self, OpenImageError> {
        if files.is_empty() || files.len() > MAX_FILES || files.len() != formats.len() {
            return Err(OpenImageError::Files(files.len()));
        }
        let mut writer = None;
        let mut largest = 1 << 16;
        let mut layers = Vec::with_capacity(files.len());
        for (index, (file, format)) in files.iter().zip(formats).enumerate() {
            let qcow2 = match format {
                ImageFormat::Raw => None,
                ImageFormat::Qcow2 => Some(read_header(file)?),
            };
            let bytes = match &qcow2 {
                Some(header) => header.size,
                None => file.end()?,
            };
            let mut limit = u64::MAX;
            if let (Some(header), 0, true) = (&qcow2, index, writes) {
                let end = file.end()?;
                if let Some(error) = header.refuses_writes().or(header.lies_behind(end)) {
                    return Err(error.into());
                }
                limit = header.largest_file(end);
                writer = Some(Writer::new(Counts::open(file, header)?, header));
            }
            largest = qcow2
                .as_ref()
                .map_or(largest, |header| header.cluster_size().max(largest));
            let qcow2 = qcow2.map(|header| Qcow2::open(file, &header)).transpose()?;
            layers.push(Layer {
                bytes: AtomicU64::new(bytes),
                block: block_size.into(),
                limit: AtomicU64::new(limit),
                qcow2,
            });
        }
        let state = Exclusive {
            writer,
            slots: layers.iter().map(Layer::slots).collect(),
            cluster: AlignedBuffer::new(largest as usize),
            inflated: None,
        };
        Ok(Self {
            files,
            layers,
            state: Mutex::new(state),
        })
    }

    /// Changes of tables that are in memory only.
    #[cfg(test)]
    pub(super) fn changes(&self) -> usize {
        self.state().writer.as_ref().map_or(0, Writer::count)
    }

    fn state(&self) -> MutexGuard<'_, Exclusive> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Size of the disk, bytes.
    fn end(&self) -> u64 {
        self.layers[0].bytes()
    }

    /// The image at the top, which is written to.
    fn top(&self) -> io::Result<&Qcow2> {
        self.layers[0].qcow2.as_ref().ok_or_else(damaged)
    }

    /// Where the byte at `offset` is, and how many more are there.
    fn find(&self, offset: u64) -> (Found, u64) {
        let mut limit = self.end() - offset;
        for (layer, found) in self.layers.iter().enumerate() {
            if offset >= found.bytes() {
                // A backing file may be smaller than what lies over it, and is zeros behind its end, whatever it
                // lies over itself.
                break;
            }
            let (cluster, len) = found.find(offset);
            limit = limit.min(len);
            let found = match cluster {
                Known::Unread => Found::Unread { layer },
                Known::Cluster(Cluster::Below) => continue,
                Known::Cluster(Cluster::Zero { .. }) => Found::Hole,
                Known::Cluster(Cluster::Here { host, owned })
                    if offset < self.layers[layer].whole() =>
                {
                    Found::Here { layer, host, owned }
                }
                Known::Cluster(cluster) => Found::Special { layer, cluster },
            };
            return (found, limit);
        }
        (Found::Hole, limit)
    }

    /// The extent of what `access` wants at `offset`, no longer than a cluster.
    fn one(&self, access: Access, offset: u64) -> Extent {
        let (found, len) = self.find(offset);
        let place = match (access, found) {
            (_, Found::Unread { .. }) => Place::Unready,
            (Access::Read, Found::Here { layer, host, .. }) => Place::File {
                file: layer as u16,
                offset: host,
            },
            (
                _,
                Found::Here {
                    layer: 0,
                    host,
                    owned: true,
                },
            ) => Place::File {
                file: 0,
                offset: host,
            },
            (Access::Write, _) => Place::Unready,
            (_, Found::Hole) => Place::Hole,
            // What is not needed any more may stay.
            (Access::Discard, _) => Place::Hole,
            _ => Place::Unready,
        };
        Extent { place, len }
    }

    /// Reads the tables that say where `offset` is.
    fn load(&self, state: &mut Exclusive, offset: u64) -> io::Result<(Found, u64)> {
        // Each turn reads a table; one more for each layer could push others out.
        for _ in 0..=self.layers.len() {
            match self.find(offset) {
                (Found::Unread { layer }, _) => self.read_table(state, layer, offset)?,
                found => return Ok(found),
            }
        }
        Err(damaged())
    }

    fn read_table(&self, state: &mut Exclusive, layer: usize, offset: u64) -> io::Result<()> {
        let qcow2 = self.layers[layer].qcow2.as_ref().ok_or_else(damaged)?;
        let (table, _) = qcow2.tables.numbers(offset >> qcow2.bits);
        let host = entry::table(qcow2.tables.l1(table)).ok_or_else(damaged)?;
        let size = 1 << qcow2.bits;
        if !host.is_multiple_of(size) || host + size > self.layers[layer].limit() {
            return Err(damaged());
        }
        let mut bytes = AlignedBuffer::new(1 << qcow2.bits);
        self.files[layer].read_padded(bytes.bytes_mut(), host)?;
        self.put_table(state, layer, table, bytes.bytes())
    }

    /// Puts a table into memory, in place of one that the file has, too.
    fn put_table(
        &self,
        state: &mut Exclusive,
        layer: usize,
        table: usize,
        bytes: &[u8],
    ) -> io::Result<()> {
        let qcow2 = self.layers[layer].qcow2.as_ref().ok_or_else(damaged)?;
        let tables = &qcow2.tables;
        for attempt in 0..=tables.room() {
            let slots = &mut state.slots[layer];
            let slot = slots.next;
            slots.next = (slot + 1) % tables.room();
            let tenant = slots.tenants[slot];
            if let (Some(tenant), 0, Some(writer)) = (tenant, layer, &mut state.writer)
                && writer.is_changed(tenant)
            {
                if attempt < tables.room() {
                    continue;
                }
                writer.settle(&self.files[0], tables)?;
            }
            tables.put(slot, tenant, table, bytes);
            state.slots[layer].tenants[slot] = Some(table);
            return Ok(());
        }
        Err(damaged())
    }

    /// Reads whatever is there; zeros behind the end of the disk. Direct I/O is of whole pages, if `bytes` are.
    fn read(&self, state: &mut Exclusive, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            if offset >= self.end() {
                bytes.fill(0);
                return Ok(());
            }
            let (found, len) = self.load(state, offset)?;
            let len = bytes.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            match found {
                Found::Here { layer, host, .. } => {
                    // What is too much is read again from where it belongs.
                    let pages = len.next_multiple_of(PAGE).min(bytes.len());
                    if self.files[layer].read_at(&mut bytes[..pages], host)? < len {
                        return Err(damaged());
                    }
                }
                Found::Hole => bytes[..len].fill(0),
                Found::Special { layer, cluster } => {
                    self.read_special(state, layer, cluster, &mut bytes[..len], offset)?;
                }
                Found::Unread { .. } => return Err(damaged()),
            }
            (bytes, offset) = (&mut bytes[len..], offset + len as u64);
        }
        Ok(())
    }

    /// Reads `bytes` at `offset` of the disk, for who waits; zeros behind its end.
    pub(in crate::virtio::block) fn read_at(
        &self,
        bytes: &mut [u8],
        offset: u64,
    ) -> io::Result<()> {
        self.read(&mut self.state(), bytes, offset)
    }
}

impl Layer {
    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Bytes that are whole blocks.
    fn whole(&self) -> u64 {
        self.bytes() & !(self.block - 1)
    }

    fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    fn slots(&self) -> Slots {
        let room = self.qcow2.as_ref().map_or(0, |qcow2| qcow2.tables.room());
        Slots {
            tenants: vec![None; room],
            next: 0,
        }
    }

    /// What the layer knows of the byte at `offset`, and of how many after it. What is a place in the file is
    /// that byte's.
    fn find(&self, offset: u64) -> (Known, u64) {
        let Some(qcow2) = &self.qcow2 else {
            let all = Cluster::Here {
                host: offset,
                owned: false,
            };
            return (Known::Cluster(all), self.whole_left(offset));
        };
        let size = 1 << qcow2.bits;
        let within = offset % size;
        let left = (size - within).min(self.whole_left(offset));
        let known = match qcow2.tables.find(offset >> qcow2.bits) {
            Known::Cluster(Cluster::Here { host, .. }) if host + size > self.limit() => {
                Known::Cluster(Cluster::Damaged)
            }
            Known::Cluster(Cluster::Here { host, owned }) => Known::Cluster(Cluster::Here {
                host: host + within,
                owned,
            }),
            known => known,
        };
        (known, left)
    }

    /// Bytes from `offset` to the end of the last whole block, or to the end behind that.
    fn whole_left(&self, offset: u64) -> u64 {
        match self.whole() {
            whole if offset < whole => whole - offset,
            _ => self.bytes() - offset,
        }
    }
}

impl Qcow2 {
    fn open(file: &DiskFile, header: &Header) -> io::Result<Self> {
        let mut l1 = AlignedBuffer::new((header.l1_size * 8).next_multiple_of(PAGE));
        file.read_padded(l1.bytes_mut(), header.l1_offset)?;
        let entries = numbers(&l1.bytes()[..header.l1_size * 8]);
        Ok(Self {
            bits: header.cluster_bits,
            version: header.version,
            tables: Tables::new(header, entries),
        })
    }
}

fn read_header(file: &DiskFile) -> Result<Header, OpenImageError> {
    let mut beginning = AlignedBuffer::new(HEADER_BYTES);
    file.read_padded(beginning.bytes_mut(), 0)?;
    Ok(Header::parse(beginning.bytes())?)
}
