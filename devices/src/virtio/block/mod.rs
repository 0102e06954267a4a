//! virtio-blk (virtio 1.2, 5.2).

mod stats;

pub use stats::{BlockStats, EngineKind};
