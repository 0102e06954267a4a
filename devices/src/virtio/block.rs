//! virtio-blk (virtio 1.2, 5.2) in three parts: the front end here and in `handler`, the image below
//! it (`image`: where the disk's bytes are), and the engine that moves them (`engine`).
//!
//! Workers hand guest buffers to the kernel as they are, with io_uring, or with `preadv2` and
//! `pwritev2` where the host refuses that, and for writes that the page cache takes at once. Each has
//! a queue of its own, or several where the disk has fewer rings than queues.
//!
//! `FLUSH` makes durable what completed before it was made available. If a driver does not negotiate
//! it, and with [`CacheMode::Writethrough`] (which does not offer it), each write is durable when it
//! completes.

mod bounce;
mod config;
mod engine;
mod errors;
mod file;
mod flatten;
mod handler;
mod image;
mod prompt;
mod reader;
mod request;
mod rings;
mod slots;
mod spec;
mod stats;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use crate::host_errors::HostErrors;
use crate::state::{RestoreError, SaveError, Saved, State};
use crate::virtio::block::config::{Config, F_FLUSH};
pub use crate::virtio::block::errors::ErrorPolicy;
use crate::virtio::block::errors::Errors;
pub use crate::virtio::block::flatten::flatten;
use crate::virtio::block::handler::{BlockHandler, Shared};
use crate::virtio::block::image::Image;
#[cfg(any(test, feature = "testing"))]
pub use crate::virtio::block::image::testing::BareImage;
pub use crate::virtio::block::image::{
    Backing, HEADER_BYTES, Header, HeaderError, ImageFormat, MAX_FILES, OpenImageError, create,
    is_qcow2,
};
pub use crate::virtio::block::reader::DiskReader;
use crate::virtio::block::request::{ID_SIZE, Rules};
pub use crate::virtio::block::rings::{Rings, probe as probe_ring, set_aside};
pub use crate::virtio::block::spec::{BlockOptions, BlockSpec, BuildBlockError, CacheMode};
pub use crate::virtio::block::stats::{BlockStats, EngineKind};
use crate::virtio::queue::VirtQueue;
use crate::virtio::{
    ActivateError, Activation, CommandEffect, CommandError, DeviceInfo, QueueHandler, VirtioDevice,
    stats_value,
};

/// Entries of each request queue.
pub const QUEUE_SIZE: u16 = 256;

/// Most request queues of one device.
pub const MAX_QUEUES: u16 = 64;

/// What a disk is.
pub const INFO: DeviceInfo = DeviceInfo {
    virtio_type: 2,
    pci_class: 0x01_80_00,
    thread_prefix: "blk",
    seccomp_role: "block",
};

/// A virtio block device.
pub struct Block {
    name: String,
    features: u64,
    config: Config,
    block_size: u32,
    queue_sizes: Vec<u16>,
    /// Why io_uring is not used.
    no_ring: Option<String>,
    /// Why it has fewer rings than it should, but some.
    few_rings: Option<String>,
    shared: Arc<Shared>,
}

impl Block {
    fn new(spec: &BlockSpec, image: Box<dyn Image>) -> Self {
        let options = &spec.options;
        let no_ring = settle_rings(spec, &*image);
        let few_rings = few_rings(spec);
        let mut id = [0; ID_SIZE];
        let serial = options.serial.as_deref().unwrap_or_default().as_bytes();
        id[..serial.len()].copy_from_slice(serial);
        let rules = Rules {
            read_only: options.read_only,
            discard: options.discard,
        };
        Self {
            name: spec.name.clone(),
            features: config::features(options),
            config: Config::new(options),
            block_size: options.logical_block_size,
            queue_sizes: vec![QUEUE_SIZE; usize::from(options.queues)],
            no_ring,
            few_rings,
            shared: Arc::new(Shared {
                image,
                rules,
                id,
                counters: Default::default(),
                errors: Errors::new(&spec.name, options.error_policy),
                rings: Arc::clone(&spec.rings),
            }),
        }
    }

    /// Gives the disk `bytes` bytes, a multiple of the logical block size and no less than it has. The file of
    /// a raw image has them already.
    fn resize(&self, bytes: u64) -> io::Result<CommandEffect> {
        let block_size = self.block_size;
        if !bytes.is_multiple_of(block_size.into()) {
            let error = format!("{bytes} bytes are no whole number of blocks of {block_size}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let before = self.shared.image.bytes();
        self.shared.image.resize(bytes)?;
        let config_changed = bytes != before;
        Ok(CommandEffect { config_changed })
    }

    /// Does without io_uring, as on a host that refuses it.
    #[cfg(any(test, feature = "testing"))]
    pub fn force_sync(&mut self) {
        self.shared.rings.clear();
        self.no_ring = Some("for a test".into());
    }
}

/// Puts the image's files into the tables of the disk's rings. Why none are used, if none are.
fn settle_rings(spec: &BlockSpec, image: &dyn Image) -> Option<String> {
    let (name, rings) = (&spec.name, &spec.rings);
    if let Err(error) = rings.use_files(image.files()) {
        rings.clear();
        warn!(disk = name, %error, "no io_uring: its rings do not take the image");
        return Some(error.to_string());
    }
    if rings.len() == 0 {
        let cause = rings.refusal();
        warn!(
            disk = name,
            cause, "no io_uring, using preadv2 and pwritev2"
        );
        return Some(cause);
    }
    None
}

/// Why there are fewer rings than workers could use, where there are some.
fn few_rings(spec: &BlockSpec) -> Option<String> {
    let (count, wanted) = (spec.rings.len(), spec.rings.wanted());
    if count == 0 || count >= wanted {
        return None;
    }
    let cause = spec.rings.refusal();
    warn!(
        disk = spec.name,
        cause, "{count} of {wanted} io_uring rings: queues share them"
    );
    Some(format!("{count} of {wanted} io_uring rings: {cause}"))
}

/// What a disk can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "camelCase", deny_unknown_fields)]
pub enum BlockCommand {
    /// Be larger.
    Resize {
        /// Size from now on, bytes.
        bytes: u64,
    },
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
    fn info(&self) -> &'static DeviceInfo {
        &INFO
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
        let dsync = activation.features & F_FLUSH == 0;
        let workers = match self.shared.rings.len() {
            0 => activation.queues.len(),
            rings => rings.min(activation.queues.len()),
        };
        let mut shares: Vec<Vec<VirtQueue>> = (0..workers).map(|_| Vec::new()).collect();
        for (position, queue) in activation.queues.into_iter().enumerate() {
            shares[position % workers].push(queue);
        }
        let handlers = shares.into_iter().filter_map(|queues| {
            let handler = BlockHandler::new(queues, dsync, Arc::clone(&self.shared))?;
            Some(Box::new(handler) as Box<dyn QueueHandler>)
        });
        Ok(handlers.collect())
    }

    fn report_to(&mut self, errors: &Arc<HostErrors>) {
        self.shared.errors.tell(errors);
    }

    fn save(&self) -> Result<Saved, SaveError> {
        match self.shared.errors.held() {
            0 => {}
            count => return Err(SaveError::Held(self.name.clone(), count)),
        }
        let image = &self.shared.image;
        image.settle().map_err(SaveError::Io)?;
        let bytes = image.bytes();
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

    fn command(&mut self, command: Value) -> Result<CommandEffect, CommandError> {
        let BlockCommand::Resize { bytes } = serde_json::from_value(command)?;
        Ok(self.resize(bytes)?)
    }

    fn fallback(&self) -> Option<String> {
        let no_ring = self.no_ring.as_ref();
        no_ring
            .map(|cause| format!("no io_uring: {cause}"))
            .or_else(|| self.few_rings.clone())
    }

    fn stats(&self) -> Value {
        stats_value(&self.shared.counters.snapshot(self.no_ring.as_deref()))
    }
}
