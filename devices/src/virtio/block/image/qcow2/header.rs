//! The header of an image, read once and checked.

use thiserror::Error;

/// `QFI\xfb` at the beginning of each image.
pub(super) const MAGIC: u32 = 0x5146_49fb;

/// How much of a file's beginning [`Header::parse`] wants to see, bytes; less if the file is smaller.
pub const HEADER_BYTES: usize = 64 * 1024;

/// Bits of the size of a cluster: 4 KiB, so that transfers of tables are aligned, to QEMU's 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 12..=21;

/// Largest L1 table, entries (8 MiB): disks of 512 TiB with clusters of 64 KiB.
pub(super) const MAX_L1: u64 = 1 << 20;

/// Largest table of reference counts, bytes, as in QEMU.
const MAX_COUNTS: u64 = 8 << 20;

/// Longest name of a backing file (the format's own limit), bytes.
pub(super) const MAX_NAME: usize = 1023;

/// Length of the header of version 2, bytes; of version 3, at least.
const LENGTH_2: usize = 72;
const LENGTH_3: usize = 104;

/// Offsets of what is changed in a header.
pub(super) const SIZE: usize = 24;
pub(super) const L1_SIZE: usize = 36;
pub(super) const L1_OFFSET: usize = 40;
pub(super) const COUNTS_OFFSET: usize = 48;
pub(super) const COUNTS_CLUSTERS: usize = 56;
pub(super) const AUTOCLEAR: usize = 88;

/// Incompatible features.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Extension with the format of the backing file.
pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;

/// Why an image is not taken.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum HeaderError {
    /// It is another kind of file.
    #[error("it is not a qcow2 image")]
    NotQcow2,
    /// Its header ends early or has a value that none can have.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It uses what is not there.
    #[error("it has {0}")]
    Unsupported(&'static str),
}

/// A backing file as the header names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name, of which the image's maker has made anything.
    pub name: String,
    /// Its format, if that is said.
    pub format: Option<String>,
}

/// What the header of an image says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Size of the disk, bytes.
    pub size: u64,
    /// What is read where the image has nothing.
    pub backing: Option<Backing>,
    /// It has snapshots of its own.
    pub has_snapshots: bool,
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// Entries and place of the L1 table.
    pub(super) l1_size: usize,
    pub(super) l1_offset: u64,
    /// Place of the table of reference counts, and its size in bytes.
    pub(super) counts_offset: u64,
    pub(super) counts_bytes: usize,
    /// Bits of a reference count, as a power of two.
    pub(super) count_order: u32,
    incompatible: u64,
    pub(super) autoclear: u64,
}

/// Whether a file that begins like this is a qcow2 image.
pub fn is_qcow2(beginning: &[u8]) -> bool {
    beginning.first_chunk() == Some(&MAGIC.to_be_bytes())
}

/// The beginning of an image, with checked reads.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], HeaderError> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk());
        bytes
            .copied()
            .ok_or(HeaderError::Damaged("its header ends early"))
    }

    fn u32(&self, at: usize) -> Result<u32, HeaderError> {
        self.array(at).map(u32::from_be_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, HeaderError> {
        self.array(at).map(u64::from_be_bytes)
    }

    fn text(&self, at: usize, len: usize) -> Result<String, HeaderError> {
        let bytes = at.checked_add(len).and_then(|end| self.0.get(at..end));
        let text = bytes.and_then(|bytes| std::str::from_utf8(bytes).ok());
        text.filter(|text| !text.contains('\0'))
            .map(str::to_owned)
            .ok_or(HeaderError::Damaged("a name in its header is not readable"))
    }
}

impl Header {
    /// Reads the header in `beginning`, the first [`HEADER_BYTES`] of an image.
    pub fn parse(beginning: &[u8]) -> Result<Self, HeaderError> {
        if !is_qcow2(beginning) {
            return Err(HeaderError::NotQcow2);
        }
        let bytes = Bytes(beginning);
        let version = bytes.u32(4)?;
        let (length, incompatible, autoclear, count_order) = match version {
            2 => (LENGTH_2, 0, 0, 4),
            3 => (
                bytes.u32(100)? as usize,
                bytes.u64(72)?,
                bytes.u64(AUTOCLEAR)?,
                bytes.u32(96)?,
            ),
            _ => return Err(HeaderError::Unsupported("an unknown version")),
        };
        if version == 3 && length < LENGTH_3 {
            return Err(HeaderError::Damaged("its header is too short"));
        }
        refuse_features(&bytes, length, incompatible)?;
        if bytes.u32(32)? != 0 {
            return Err(HeaderError::Unsupported("encryption"));
        }
        let counts_clusters = u64::from(bytes.u32(COUNTS_CLUSTERS)?);
        let cluster_bits = bytes.u32(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(HeaderError::Unsupported(
                "clusters of another size than 4 KiB to 2 MiB",
            ));
        }
        let header = Self {
            size: bytes.u64(SIZE)?,
            backing: read_backing(&bytes, length)?,
            has_snapshots: bytes.u32(60)? != 0,
            version,
            cluster_bits,
            l1_size: bytes.u32(L1_SIZE)? as usize,
            l1_offset: bytes.u64(L1_OFFSET)?,
            counts_offset: bytes.u64(COUNTS_OFFSET)?,
            counts_bytes: (counts_clusters << cluster_bits).min(MAX_COUNTS + 1) as usize,
            count_order,
            incompatible,
            autoclear,
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), HeaderError> {
        let cluster = self.cluster_size();
        let needed = l1_entries(self.size, cluster);
        if needed > MAX_L1 || self.l1_size as u64 > MAX_L1 {
            return Err(TOO_LARGE);
        }
        if (self.l1_size as u64) < needed {
            return Err(HeaderError::Damaged("its first table is too short"));
        }
        let places = [self.l1_offset, self.counts_offset];
        let is_good = |place: &u64| place.is_multiple_of(cluster) && *place < MAX_OFFSET;
        if !places.iter().all(is_good) || (self.l1_offset == 0 && needed > 0) {
            return Err(HeaderError::Damaged("a table is not where one can be"));
        }
        if self.counts_bytes as u64 > MAX_COUNTS || self.count_order > 6 {
            return Err(HeaderError::Damaged("its reference counts cannot be"));
        }
        Ok(())
    }

    /// Why the image cannot be written to, though it can be read.
    pub fn refuses_writes(&self) -> Option<HeaderError> {
        let what = if self.incompatible & DIRTY != 0 {
            "reference counts that are out of date: repair them by `qemu-img check -r all`"
        } else if self.has_snapshots {
            "snapshots of its own: delete them by `qemu-img snapshot -d`"
        } else if self.count_order != 4 {
            "reference counts of another size than 16 bits"
        } else if self.counts_bytes == 0 || self.counts_offset == 0 {
            return Some(HeaderError::Damaged("it has no reference counts"));
        } else {
            return None;
        };
        Some(HeaderError::Unsupported(what))
    }

    /// Whether its tables lie behind the end of the file, which has `end` bytes.
    pub(super) fn lies_behind(&self, end: u64) -> Option<HeaderError> {
        let l1_end = self.l1_offset + self.l1_size as u64 * 8;
        let counts_end = self.counts_offset + self.counts_bytes as u64;
        let what = HeaderError::Damaged("its tables lie behind its end");
        (l1_end.max(counts_end) > end.next_multiple_of(self.cluster_size())).then_some(what)
    }

    /// Size of a cluster, bytes.
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes that a file of `end` bytes with this header may come to have: all of the disk once more, and
    /// its tables.
    pub fn largest_file(&self, end: u64) -> u64 {
        with_disk(end, self.size)
    }
}

/// The same of a file that may have `file` bytes without the `bytes` bytes of its disk.
pub(super) fn with_disk(file: u64, bytes: u64) -> u64 {
    const SLACK: u64 = 64 << 20;
    file.saturating_add(bytes)
        .saturating_add(bytes / 64)
        .saturating_add(SLACK)
        .min(MAX_OFFSET)
}

/// Entries of the L1 table that a disk of `bytes` bytes needs with clusters of `cluster` bytes.
pub(super) fn l1_entries(bytes: u64, cluster: u64) -> u64 {
    bytes.div_ceil(cluster).div_ceil(cluster / 8)
}

/// Too large a disk.
pub(super) const TOO_LARGE: HeaderError =
    HeaderError::Unsupported("a disk too large for its clusters");

/// What an offset in an image stays below (bits 9 to 55 of an entry).
pub(super) const MAX_OFFSET: u64 = 1 << 56;

fn refuse_features(bytes: &Bytes<'_>, length: usize, incompatible: u64) -> Result<(), HeaderError> {
    let known = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
    let has = |feature: u64| incompatible & feature != 0;
    let what = if has(CORRUPT) {
        "the mark of a damaged image: repair it by `qemu-img check -r all`"
    } else if has(DATA_FILE) {
        "its data in a file of its own: convert it by `qemu-img convert`"
    } else if has(EXTENDED_L2) {
        "clusters in parts (extended_l2): convert it by `qemu-img convert`"
    } else if has(COMPRESSION) && (length <= LENGTH_3 || bytes.0.get(LENGTH_3) != Some(&0)) {
        "compression other than zlib's: convert it by `qemu-img convert`"
    } else if has(!known) {
        "features that are not known"
    } else {
        return Ok(());
    };
    Err(HeaderError::Unsupported(what))
}

fn read_backing(bytes: &Bytes<'_>, length: usize) -> Result<Option<Backing>, HeaderError> {
    let (at, len) = (bytes.u64(8)?, bytes.u32(16)? as usize);
    if at == 0 || len == 0 {
        return Ok(None);
    }
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    if len > MAX_NAME {
        return Err(HeaderError::Damaged(
            "the name of its backing file is too long",
        ));
    }
    let name = bytes.text(at, len)?;
    let format = read_format(bytes, length)?;
    Ok(Some(Backing { name, format }))
}

/// Looks through the extensions: type, length, and data up to a multiple of eight bytes.
fn read_format(bytes: &Bytes<'_>, length: usize) -> Result<Option<String>, HeaderError> {
    let mut at = length;
    loop {
        let (Ok(kind), Ok(len)) = (bytes.u32(at), bytes.u32(at + 4)) else {
            return Ok(None);
        };
        match kind {
            0 => return Ok(None),
            BACKING_FORMAT => return bytes.text(at + 8, len as usize).map(Some),
            _ => {}
        }
        at = (len as usize)
            .checked_next_multiple_of(8)
            .and_then(|len| at.checked_add(8 + len))
            .filter(|at| *at < HEADER_BYTES)
            .ok_or(HeaderError::Damaged(
                "an extension of its header has no end",
            ))?;
    }
}
