//! Partition tables: GPT by a library, MBR here.

use std::io::{Read, Seek};

use gpt::disk::LogicalBlockSize;
use gpt::header::{HeaderError, read_header_from_arbitrary_device};
use gpt::partition::file_read_partitions;

use super::disk::Disk;
use super::error::DiskError;

/// Most partitions that are looked at.
const MAX_PARTITIONS: u32 = 256;

/// Bytes of an entry of a GPT (UEFI 2.10, 5.3.2; larger ones are nowhere to be found).
const GPT_ENTRY: u32 = 128;

/// Partition types of the Discoverable Partitions Specification that say what is there.
const GPT_TYPES: [(&str, Kind); 4] = [
    ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", Kind::Esp),
    ("BC13C2FF-59E6-4262-A352-B275FD6F7172", Kind::ExtendedBoot),
    ("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", Kind::Root),
    ("21686148-6449-6E6F-744E-656564454649", Kind::BiosBoot),
];

/// What a partition is for, as far as its type tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// EFI system partition.
    Esp,
    /// Extended boot loader partition.
    ExtendedBoot,
    /// Root file system of x86-64.
    Root,
    /// GRUB's own, without a file system.
    BiosBoot,
    /// Anything.
    Other,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1; 0 for a whole disk without a table.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is for.
    pub kind: Kind,
    /// Name in a GPT.
    pub name: String,
}

/// What divides a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// GUID partition table with sectors of so many bytes.
    Gpt(u64),
    /// Master boot record.
    Mbr,
    /// Nothing: a file system on the whole disk, perhaps.
    None,
}

/// The partitions of a disk, or the whole of it where it has no table.
pub fn partitions(disk: &Disk) -> Result<(Scheme, Vec<Partition>), DiskError> {
    for size in [LogicalBlockSize::Lb512, LogicalBlockSize::Lb4096] {
        if let Some(found) = read_gpt(disk, size)? {
            return Ok((Scheme::Gpt(size.as_u64()), found));
        }
    }
    let whole = Partition {
        number: 0,
        start: 0,
        len: disk.len(),
        kind: Kind::Other,
        name: String::new(),
    };
    let mut sector = [0; SECTOR as usize];
    // A disk that is smaller has no room for anything.
    if disk.read_at(0, &mut sector).is_err() || is_file_system(&sector) {
        return Ok((Scheme::None, vec![whole]));
    }
    match read_mbr(disk, &sector) {
        found if found.is_empty() => Ok((Scheme::None, vec![whole])),
        found => Ok((Scheme::Mbr, found)),
    }
}

fn read_gpt(disk: &Disk, size: LogicalBlockSize) -> Result<Option<Vec<Partition>>, DiskError> {
    let mut device = disk.window(0, disk.len());
    let header = match read_header_from_arbitrary_device(&mut device, size) {
        Ok(header) => header,
        Err(HeaderError::InvalidGptSignature) => return Ok(None),
        // Smaller than two sectors.
        Err(HeaderError::Io(_)) => return Ok(None),
        Err(error) => return Err(DiskError::table("GPT", error)),
    };
    if header.part_size != GPT_ENTRY || header.num_parts > MAX_PARTITIONS {
        let what = format!("{} entries of {} bytes", header.num_parts, header.part_size);
        return Err(DiskError::table("GPT", what));
    }
    let found = read_entries(&mut device, &header, size)?;
    Ok(Some(found))
}

fn read_entries(
    device: &mut (impl Read + Seek),
    header: &gpt::header::Header,
    size: LogicalBlockSize,
) -> Result<Vec<Partition>, DiskError> {
    let entries = file_read_partitions(device, header, size)
        .map_err(|error| DiskError::table("GPT", error))?;
    let known = entries.into_iter().filter_map(|(number, entry)| {
        // What has no place or length is no partition to read.
        let (start, len) = (entry.bytes_start(size).ok()?, entry.bytes_len(size).ok()?);
        let guid = entry.part_type_guid.guid.to_string();
        let is_type = |(known, _): &&(&str, Kind)| guid.eq_ignore_ascii_case(known);
        let kind = GPT_TYPES.iter().find(is_type).map(|(_, kind)| *kind);
        Some(Partition {
            number,
            start,
            len,
            kind: kind.unwrap_or(Kind::Other),
            name: entry.name,
        })
    });
    Ok(known.collect())
}

/// Bytes that an MBR counts in.
const SECTOR: u64 = 512;

/// A FAT or NTFS file system begins with a jump as a boot record does, and says what it is.
fn is_file_system(sector: &[u8; SECTOR as usize]) -> bool {
    [(54, "FAT"), (82, "FAT"), (3, "NTFS")]
        .iter()
        .any(|(at, name)| sector[*at..].starts_with(name.as_bytes()))
}

/// An entry of a boot record: its type, first sector and count of sectors.
fn mbr_entries(sector: &[u8; SECTOR as usize]) -> Vec<(u8, u64, u64)> {
    if sector[510..] != [0x55, 0xaa] {
        return Vec::new();
    }
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let entries = sector[446..510].chunks_exact(16);
    entries
        .map(|entry| (entry[4], number(&entry[8..12]), number(&entry[12..16])))
        .collect()
}

/// Primary partitions, and those in an extended one, whose records are a list.
fn read_mbr(disk: &Disk, sector: &[u8; SECTOR as usize]) -> Vec<Partition> {
    let mut found = Vec::new();
    let partition = |number, (kind, first, count): (u8, u64, u64), base: u64| Partition {
        number,
        start: (base + first) * SECTOR,
        len: count * SECTOR,
        kind: match kind {
            0xef => Kind::Esp,
            0xea => Kind::ExtendedBoot,
            _ => Kind::Other,
        },
        name: String::new(),
    };
    let is_extended = |kind| matches!(kind, 0x05 | 0x0f | 0x85);
    let mut extended = None;
    for (number, entry) in (1..).zip(mbr_entries(sector)) {
        match entry {
            (0, ..) | (_, _, 0) => {}
            (kind, first, _) if is_extended(kind) => extended = Some(first),
            entry => found.push(partition(number, entry, 0)),
        }
    }
    let Some(base) = extended else { return found };
    let mut next = base;
    for number in 5..MAX_PARTITIONS {
        let mut record = [0; SECTOR as usize];
        if disk.read_at(next * SECTOR, &mut record).is_err() {
            break;
        }
        let entries = mbr_entries(&record);
        if let Some(entry) = entries
            .first()
            .filter(|(kind, _, count)| *kind != 0 && *count != 0)
        {
            found.push(partition(number, *entry, next));
        }
        match entries.get(1) {
            Some((kind, first, _)) if is_extended(*kind) => next = base + first,
            _ => break,
        }
    }
    found
}
