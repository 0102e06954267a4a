//! What a disk is made from, and the checks before it is made.

use std::fs::File;
use std::io;
use std::iter;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::thread::sched_getaffinity;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::file::DiskFile;
use super::image::{Image, ImageFormat, Layered, OpenImageError, Raw};
use super::request::{ID_SIZE, SECTOR_SIZE};
use super::{Block, ErrorPolicy, MAX_QUEUES, Rings};
use crate::lock::unlock;
use crate::virtio::VirtioDevice;
use crate::virtio::spec::{BuildDeviceError, DeviceFile, DeviceOptions, DeviceSpec};

/// `domain.devices.disks[].cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CacheMode {
    /// O_DIRECT; the guest sees a write-back cache and flushes it.
    None,
    /// Host page cache; each write is durable before it completes.
    Writethrough,
    /// Host page cache; durable after a flush.
    Writeback,
}

/// What a disk is made from beside its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockOptions {
    /// Serial number, at most 20 bytes.
    pub serial: Option<String>,
    /// Refuse writes.
    pub read_only: bool,
    /// When writes are durable.
    pub cache: CacheMode,
    /// Logical block size in bytes, a power of two from 512 to 4096.
    pub logical_block_size: u32,
    /// Physical block size in bytes, a power of two, at least the logical one.
    pub physical_block_size: u32,
    /// Granularity of discards in bytes, a multiple of 512; the logical block size if unset.
    pub discard_granularity: Option<u32>,
    /// Offer `DISCARD`, and `WRITE_ZEROES` that deallocates.
    pub discard: bool,
    /// What follows when the host fails to read or write.
    pub error_policy: ErrorPolicy,
    /// Request queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Formats of the image's files, from the one that is written to down to the last backing file; empty
    /// for a raw image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<ImageFormat>,
}

/// A writable disk with sectors of 512 bytes and discard.
impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            serial: None,
            read_only: false,
            cache: CacheMode::None,
            logical_block_size: 512,
            physical_block_size: 512,
            discard_granularity: None,
            discard: true,
            error_policy: ErrorPolicy::default(),
            queues: 1,
            layers: Vec::new(),
        }
    }
}

impl DeviceOptions for BlockOptions {
    fn queues(&self) -> u32 {
        self.queues.into()
    }

    /// One a ring where there are fewer, but that is known late.
    fn workers(&self) -> u32 {
        self.queues.into()
    }

    /// There may be an overlay of this machine's own over the files that were saved.
    fn matched_to(self, saved: &Self, _: bool) -> Self {
        let below = match &*saved.layers {
            [] => &[ImageFormat::Raw],
            layers => layers,
        };
        let layers = match &*self.layers {
            [ImageFormat::Qcow2, rest @ ..] if rest == below => saved.layers.clone(),
            _ => self.layers,
        };
        Self { layers, ..self }
    }

    /// Takes the image, or the files of its layers in their order.
    fn spec(
        self,
        name: String,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Box<dyn DeviceSpec>, BuildDeviceError> {
        let (found, wanted) = (descriptors.len(), self.layers.len().max(1));
        let mut files = descriptors.into_iter().map(File::from);
        let file = files.next().filter(|_| found == wanted);
        let Some(file) = file else {
            return Err(BuildDeviceError::Descriptors {
                name,
                found,
                wanted,
            });
        };
        let processors = sched_getaffinity(None).map_or(1, |set| set.count());
        // More workers than processors would only wait for each other.
        let workers = u32::from(self.queues).min(processors);
        Ok(Box::new(BlockSpec {
            name,
            file,
            backing: files.collect(),
            lost: Arc::default(),
            rings: Arc::new(Rings::take(workers as usize)),
            options: self,
        }))
    }
}

/// One disk.
#[derive(Debug)]
pub struct BlockSpec {
    /// Name of the disk in the VMI.
    pub name: String,
    /// The image, open for what the disk allows, with `O_DIRECT` if `cache` is `None`.
    pub file: File,
    /// The files below it, if it has layers.
    pub backing: Vec<File>,
    /// What the page cache had of it may be lost, since a flush has failed: none succeeds any more.
    pub lost: Arc<AtomicBool>,
    /// What its workers reach the image by; where there are none, by calls that wait.
    pub rings: Arc<Rings>,
    /// The rest.
    pub options: BlockOptions,
}

impl DeviceSpec for BlockSpec {
    fn make(&self) -> Result<Box<dyn VirtioDevice>, BuildDeviceError> {
        match self.build() {
            Ok(disk) => Ok(Box::new(disk)),
            Err(error @ (BuildBlockError::Ragged { .. } | BuildBlockError::Empty { .. })) => {
                Err(BuildDeviceError::refused(error))
            }
            Err(error) => Err(BuildDeviceError::failed(error)),
        }
    }

    fn files(&self) -> Vec<DeviceFile<'_>> {
        let top = DeviceFile {
            fd: self.file.as_fd(),
            is_written: !self.options.read_only,
        };
        let backing = self.backing.iter().map(|file| DeviceFile {
            fd: file.as_fd(),
            is_written: false,
        });
        iter::once(top).chain(backing).collect()
    }
}

impl Drop for BlockSpec {
    /// The disk's machine is at its end or without it. The kernel closes what the rings have only some time later, and
    /// the locks would last until then. They do where a ring was given up with requests in flight.
    fn drop(&mut self) {
        if self.rings.are_idle() {
            iter::once(&self.file).chain(&self.backing).for_each(unlock);
        }
    }
}

/// A disk that cannot be made.
#[derive(Debug, Error)]
pub enum BuildBlockError {
    /// The image's type, size or flags cannot be read.
    #[error("Cannot inspect the image of disk {name}")]
    Inspect {
        /// The disk.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The image cannot be used.
    #[error("The image of disk {name} cannot be used")]
    Image {
        /// The disk.
        name: String,
        /// The cause.
        #[source]
        source: OpenImageError,
    },
    /// The image is neither a regular file nor a block device.
    #[error("The image of disk {name} is neither a regular file nor a block device")]
    FileType {
        /// The disk.
        name: String,
    },
    /// A disk of no byte, which guests do not expect.
    #[error("The image of disk {name} is empty")]
    Empty {
        /// The disk.
        name: String,
    },
    /// The image is not a whole number of blocks.
    #[error("The image of disk {name} has {bytes} bytes, not a multiple of {block_size}")]
    Ragged {
        /// The disk.
        name: String,
        /// Size of the image.
        bytes: u64,
        /// Logical block size.
        block_size: u32,
    },
    /// A number in the spec is out of its range.
    #[error("Disk {name}: {field} cannot be {value}")]
    Field {
        /// The disk.
        name: String,
        /// Which number.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl BlockSpec {
    /// Checks the spec and the image, and makes the device.
    pub fn build(&self) -> Result<Block, BuildBlockError> {
        self.check_numbers()?;
        let name = || self.name.clone();
        let inspect = |source| BuildBlockError::Inspect {
            name: name(),
            source,
        };
        for file in iter::once(&self.file).chain(&self.backing) {
            let file_type = file.metadata().map_err(inspect)?.file_type();
            if !file_type.is_file() && !file_type.is_block_device() {
                return Err(BuildBlockError::FileType { name: name() });
            }
        }
        let block_size = self.options.logical_block_size;
        let image = self.open().map_err(|source| BuildBlockError::Image {
            name: name(),
            source,
        })?;
        let bytes = image.bytes();
        if bytes == 0 {
            return Err(BuildBlockError::Empty { name: name() });
        }
        if !bytes.is_multiple_of(u64::from(block_size)) {
            return Err(BuildBlockError::Ragged {
                name: name(),
                bytes,
                block_size,
            });
        }
        Ok(Block::new(self, image))
    }

    fn open(&self) -> Result<Box<dyn Image>, OpenImageError> {
        let options = &self.options;
        let block_size = options.logical_block_size;
        let settle = |file: &File| DiskFile::settle(file.try_clone()?, block_size, &self.lost);
        if options.layers.is_empty() {
            return Ok(Box::new(Raw::open(settle(&self.file)?)?));
        }
        let files = iter::once(&self.file).chain(&self.backing).map(settle);
        let files = files.collect::<io::Result<_>>()?;
        // Clusters are given a place at their first use, so even a disk that the guest cannot write to may
        // have a top that is written to.
        let writes = options.layers.first() == Some(&ImageFormat::Qcow2);
        let image = Layered::open(files, &options.layers, block_size, writes)?;
        Ok(Box::new(image))
    }

    fn check_numbers(&self) -> Result<(), BuildBlockError> {
        let options = &self.options;
        let (logical, physical) = (options.logical_block_size, options.physical_block_size);
        let granularity = options.discard_granularity.unwrap_or(logical);
        let sectors = granularity != 0 && u64::from(granularity).is_multiple_of(SECTOR_SIZE);
        let serial = options.serial.as_ref().map_or(0, String::len);
        let checks = [
            (
                "queues",
                u64::from(options.queues),
                (1..=MAX_QUEUES).contains(&options.queues),
            ),
            (
                "logicalBlockSize",
                u64::from(logical),
                logical.is_power_of_two() && (512..=4096).contains(&logical),
            ),
            (
                "physicalBlockSize",
                u64::from(physical),
                physical.is_power_of_two() && physical >= logical,
            ),
            ("discardGranularity", u64::from(granularity), sectors),
            ("serial length", serial as u64, serial <= ID_SIZE),
        ];
        match checks.into_iter().find(|&(_, _, good)| !good) {
            Some((field, value, _)) => Err(BuildBlockError::Field {
                name: self.name.clone(),
                field,
                value,
            }),
            None => Ok(()),
        }
    }
}
