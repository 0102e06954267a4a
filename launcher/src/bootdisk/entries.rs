//! Boot entries of a disk, and which of them is the default: as the boot loader finds them that the disk has.

mod bls;
mod syslinux;
mod uki;
mod version;

use std::io::Read;

use serde::{Deserialize, Serialize};

pub use self::bls::{entry as bls_entry, snippets};
pub use self::uki::sections;
pub use self::version::compare;

use super::disk::Disk;
use super::error::DiskError;
use super::filesystem::{Content, FileSystem, probe};
use super::grub;
use super::partitions::{Kind, Partition, Scheme, partitions};

/// Most entries of a disk.
pub const MAX_ENTRIES: usize = 512;

/// A file in one of a disk's file systems.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Number of its partition.
    pub partition: u32,
    /// Absolute path there.
    pub path: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { partition, path } = self;
        match partition {
            0 => write!(formatter, "{path:?}"),
            number => write!(formatter, "{path:?} of partition {number}"),
        }
    }
}

/// What can be booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// What it is called by `--boot-entry` and by boot loaders.
    pub id: String,
    /// What people see.
    pub title: String,
    /// The file that has it.
    pub source: Place,
    /// The kernel, or the unified kernel image.
    pub kernel: Place,
    /// The image has kernel, initial RAM disk and command line in it.
    pub unified: bool,
    /// Initial RAM disks, one behind the other.
    pub initrds: Vec<Place>,
    /// Kernel command line.
    pub options: String,
}

/// A partition and what is in it.
pub struct Volume {
    /// The partition.
    pub partition: Partition,
    /// What is there.
    pub content: Content,
}

impl Volume {
    /// Its file system, if it can be read.
    pub fn files(&self) -> Option<&dyn FileSystem> {
        match &self.content {
            Content::Files(files) => Some(files.as_ref()),
            _ => None,
        }
    }

    /// A file of it.
    pub fn place(&self, path: impl Into<String>) -> Place {
        Place {
            partition: self.partition.number,
            path: path.into(),
        }
    }
}

/// A disk's partitions.
pub struct Volumes {
    /// How it is divided.
    pub scheme: Scheme,
    /// What is there, in the table's order.
    pub all: Vec<Volume>,
}

impl Volumes {
    /// Looks at a disk.
    pub fn of(disk: &Disk) -> Result<Self, DiskError> {
        let (scheme, found) = partitions(disk)?;
        let volume = |partition: Partition| {
            let content = match partition.kind {
                Kind::BiosBoot => Content::Unknown,
                _ => probe(&disk.window(partition.start, partition.len)),
            };
            Volume { partition, content }
        };
        let all = found.into_iter().map(volume).collect();
        Ok(Self { scheme, all })
    }

    /// Those that can be read.
    pub fn readable(&self) -> impl Iterator<Item = (&Volume, &dyn FileSystem)> {
        let volumes = self.all.iter();
        volumes.filter_map(|volume| Some((volume, volume.files()?)))
    }

    /// The one with this number.
    pub fn numbered(&self, number: u32) -> Option<&Volume> {
        let mut volumes = self.all.iter();
        volumes.find(|volume| volume.partition.number == number)
    }

    /// Opens a file.
    pub fn open(&self, place: &Place) -> std::io::Result<(Box<dyn Read + '_>, u64)> {
        let volume = self.numbered(place.partition);
        let files = volume.and_then(Volume::files);
        let files = files.ok_or(std::io::ErrorKind::NotFound)?;
        files.open(&place.path)
    }
}

/// The entries of a disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// All, in the order of the menu.
    pub all: Vec<Entry>,
    /// Index of the default.
    pub default: usize,
    /// A configuration without entries that was not read to its end, and why.
    pub unread: Option<String>,
}

/// Finds the entries of a disk. Where it has several boot loaders: systemd-boot if the ESP has it, then GRUB, then
/// entries of the Boot Loader Specification by themselves, then syslinux.
pub fn entries(volumes: &Volumes) -> Entries {
    let mut loaders = [grub::entries, bls::entries, syslinux::entries];
    if bls::has_systemd_boot(volumes) {
        loaders.swap(0, 1);
    }
    let mut unread = None;
    for entries in loaders {
        let found = entries(volumes);
        if !found.all.is_empty() {
            return found;
        }
        unread = unread.or(found.unread);
    }
    Entries {
        unread,
        ..Entries::default()
    }
}
