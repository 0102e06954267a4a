//! virtio-blk (virtio 1.2, 5.2) in three parts: the front end here and in `handler`, the image below
//! it (`image`: where the disk's bytes are), and the engine that moves them (`engine`).
//!
//! A worker per request queue hands guest buffers to the kernel as they are, with io_uring, or with
//! `preadv2` and `pwritev2` where the host refuses that, and for writes that the page cache takes at
//! once.
//!
//! `FLUSH` makes durable what completed before it was made available. If a driver does not negotiate
//! it, and with [`CacheMode::Writethrough`] (which does not offer it), each write is durable when it
//! completes.

mod bounce;
mod config;
mod engine;
mod file;
mod handler;
mod image;
mod prompt;
mod request;
mod slots;
mod stats;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::info;

use crate::irq::Irq;
use crate::state::{RestoreError, SaveError, Saved, State};
use crate::virtio::block::config::{Config, F_FLUSH};
use crate::virtio::block::engine::Ring;
use crate::virtio::block::handler::{BlockHandler, Shared};
use crate::virtio::block::image::{Image, Raw};
use crate::virtio::block::request::{ID_SIZE, Rules, SECTOR_SIZE};
pub use crate::virtio::block::stats::{BlockStats, EngineKind};
use crate::virtio::{
    ActivateError, Activation, DeviceStats, DeviceType, QueueHandler, VirtioDevice,
};

/// Entries of each request queue.
pub const QUEUE_SIZE: u16 = 256;

/// Most request queues of one device.
pub const MAX_QUEUES: u16 = 64;

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

/// One disk.
#[derive(Debug)]
pub struct BlockSpec {
    /// Name of the disk in the VMI.
    pub name: String,
    /// The image, open for what the disk allows, with `O_DIRECT` if `cache` is `None`.
    pub file: File,
    /// Refuse writes.
    pub read_only: bool,
    /// When writes are durable.
    pub cache: CacheMode,
    /// Serial number, at most 20 bytes.
    pub serial: Option<String>,
    /// Logical block size in bytes, a power of two from 512 to 4096.
    pub logical_block_size: u32,
    /// Physical block size in bytes, a power of two, at least the logical one.
    pub physical_block_size: u32,
    /// Granularity of discards in bytes, a multiple of 512; the logical block size if unset.
    pub discard_granularity: Option<u32>,
    /// Offer `DISCARD`, and `WRITE_ZEROES` that deallocates.
    pub discard: bool,
    /// Request queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
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
    /// The image is neither a regular file nor a block device.
    #[error("The image of disk {name} is neither a regular file nor a block device")]
    FileType {
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
    /// Checks the spec and the image, and makes the device with its io_uring instances.
    pub fn build(self) -> Result<Block, BuildBlockError> {
        self.check_numbers()?;
        let inspect = |source| BuildBlockError::Inspect {
            name: self.name.clone(),
            source,
        };
        let file_type = self.file.metadata().map_err(inspect)?.file_type();
        if !file_type.is_file() && !file_type.is_block_device() {
            return Err(BuildBlockError::FileType { name: self.name });
        }
        let block_size = self.logical_block_size;
        let file = self.file.try_clone().map_err(inspect)?;
        let image = Raw::open(file, block_size).map_err(inspect)?;
        let bytes = image.bytes();
        if !bytes.is_multiple_of(u64::from(block_size)) {
            return Err(BuildBlockError::Ragged {
                name: self.name,
                bytes,
                block_size,
            });
        }
        Ok(Block::new(&self, Box::new(image)))
    }

    fn check_numbers(&self) -> Result<(), BuildBlockError> {
        let (logical, physical) = (self.logical_block_size, self.physical_block_size);
        let granularity = self.discard_granularity.unwrap_or(logical);
        let sectors = granularity != 0 && u64::from(granularity).is_multiple_of(SECTOR_SIZE);
        let serial = self.serial.as_ref().map_or(0, String::len);
        let checks = [
            (
                "queues",
                u64::from(self.queues),
                (1..=MAX_QUEUES).contains(&self.queues),
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

/// A virtio block device.
pub struct Block {
    name: String,
    features: u64,
    config: Config,
    block_size: u32,
    /// Tells the driver of another capacity; `None` before there is one.
    config_irq: Option<Arc<dyn Irq>>,
    queue_sizes: Vec<u16>,
    engine: EngineKind,
    shared: Arc<Shared>,
}

impl Block {
    fn new(spec: &BlockSpec, image: Box<dyn Image>) -> Self {
        let rings = make_rings(&spec.name, spec.queues, &*image);
        let mut id = [0; ID_SIZE];
        let serial = spec.serial.as_deref().unwrap_or_default().as_bytes();
        id[..serial.len()].copy_from_slice(serial);
        let rules = Rules {
            read_only: spec.read_only,
            discard: spec.discard,
        };
        Self {
            name: spec.name.clone(),
            features: config::features(spec),
            config: Config::new(spec),
            block_size: spec.logical_block_size,
            config_irq: None,
            queue_sizes: vec![QUEUE_SIZE; usize::from(spec.queues)],
            engine: if rings.is_empty() {
                EngineKind::Sync
            } else {
                EngineKind::IoUring
            },
            shared: Arc::new(Shared {
                image,
                rules,
                id,
                counters: Default::default(),
                rings: Mutex::new(rings),
            }),
        }
    }

    /// Gives the disk `bytes` bytes, a multiple of the logical block size and no less than it has,
    /// which its image already holds, and tells the driver.
    pub fn resize(&mut self, bytes: u64) -> io::Result<()> {
        if !bytes.is_multiple_of(self.block_size.into()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.shared.image.resize(bytes)?;
        if let Some(irq) = &self.config_irq {
            irq.raise();
        }
        Ok(())
    }

    /// Does without io_uring, as on a host that refuses it.
    #[cfg(any(test, feature = "testing"))]
    pub fn force_sync(&mut self) {
        self.shared
            .rings
            .lock()
            .expect("no handler panicked")
            .clear();
        self.engine = EngineKind::Sync;
    }
}

/// A ring per queue, or none if the kernel refuses (many pods' seccomp profiles do).
fn make_rings(name: &str, queues: u16, image: &dyn Image) -> Vec<Ring> {
    match (0..queues)
        .map(|_| Ring::new(QUEUE_SIZE, image.files()))
        .collect()
    {
        Ok(rings) => rings,
        Err(error) => {
            info!(disk = name, %error, "no io_uring, using preadv2 and pwritev2");
            Vec::new()
        }
    }
}

/// What a disk must be to be the same. The driver's choices are in its features, and nothing is in
/// flight when a disk is saved.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockState {
    /// Size of the image.
    bytes: u64,
}

impl State for BlockState {
    const KIND: &'static str = "block";
    const VERSION: u32 = 1;
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(self.shared.image.bytes(), offset, data);
    }

    fn activate(
        &mut self,
        activation: Activation,
    ) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        self.config_irq = Some(activation.config_irq);
        let dsync = activation.features & F_FLUSH == 0;
        let handlers = activation.queues.into_iter().map(|queue| {
            let handler = BlockHandler::new(queue, dsync, Arc::clone(&self.shared));
            Box::new(handler) as Box<dyn QueueHandler>
        });
        Ok(handlers.collect())
    }

    fn save(&self) -> Result<Saved, SaveError> {
        let bytes = self.shared.image.bytes();
        Saved::new(&BlockState { bytes })
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let BlockState { bytes } = saved.state()?;
        let mine = self.shared.image.bytes();
        if bytes != mine {
            let what = format!("a disk of {bytes} bytes instead of {mine}");
            return Err(RestoreError::unfit::<BlockState>(what));
        }
        Ok(())
    }

    fn stats(&self) -> DeviceStats {
        DeviceStats::Block(self.shared.counters.snapshot(self.engine))
    }
}
