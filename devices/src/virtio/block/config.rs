//! Feature bits and the configuration space (virtio 1.2, 5.2.3 and 5.2.4).

use crate::virtio::block::request::{MAX_DISCARD_SECTORS, MAX_ZEROES_SECTORS, SECTOR_SIZE};
use crate::virtio::block::slots::SLOT_BUFFERS;
use crate::virtio::block::{BlockOptions, CacheMode};
use crate::virtio::read_space;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
/// `VIRTIO_BLK_F_FLUSH`. Without it a driver takes each completed write as durable.
pub(super) const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Data buffers in one request; header and status come on top.
const SEG_MAX: u32 = SLOT_BUFFERS as u32 - 2;

/// Offsets in `struct virtio_blk_config`.
const CAPACITY: usize = 0;
const SEG_MAX_AT: usize = 12;
const BLK_SIZE: usize = 20;
const PHYSICAL_BLOCK_EXP: usize = 24;
const MIN_IO_SIZE: usize = 26;
const NUM_QUEUES: usize = 34;
const MAX_DISCARD: usize = 36;
const MAX_DISCARD_SEG: usize = 40;
const DISCARD_ALIGNMENT: usize = 44;
const MAX_ZEROES: usize = 48;
const MAX_ZEROES_SEG: usize = 52;
const ZEROES_MAY_UNMAP: usize = 56;
const SIZE: usize = 60;

/// The features that `options` ask for.
pub(super) fn features(options: &BlockOptions) -> u64 {
    let when = |condition: bool, feature: u64| if condition { feature } else { 0 };
    F_SEG_MAX
        | F_BLK_SIZE
        | F_TOPOLOGY
        | when(options.read_only, F_RO)
        | when(options.cache != CacheMode::Writethrough, F_FLUSH)
        | when(options.queues > 1, F_MQ)
        | when(options.discard && !options.read_only, F_DISCARD)
        | when(!options.read_only, F_WRITE_ZEROES)
}

/// The configuration space, in which only the capacity changes.
#[derive(Debug)]
pub(super) struct Config([u8; SIZE]);

impl Config {
    pub(super) fn new(options: &BlockOptions) -> Self {
        let mut config = Self([0; SIZE]);
        let ratio = options.physical_block_size / options.logical_block_size;
        config.put(SEG_MAX_AT, &SEG_MAX.to_le_bytes());
        config.put(BLK_SIZE, &options.logical_block_size.to_le_bytes());
        config.put(PHYSICAL_BLOCK_EXP, &[ratio.ilog2() as u8]);
        config.put(
            MIN_IO_SIZE,
            &(ratio.min(u16::MAX.into()) as u16).to_le_bytes(),
        );
        config.put(NUM_QUEUES, &options.queues.to_le_bytes());
        let granularity = options
            .discard_granularity
            .unwrap_or(options.logical_block_size);
        if options.discard && !options.read_only {
            config.put(MAX_DISCARD, &MAX_DISCARD_SECTORS.to_le_bytes());
            config.put(MAX_DISCARD_SEG, &1u32.to_le_bytes());
            config.put(
                DISCARD_ALIGNMENT,
                &(granularity / SECTOR_SIZE as u32).to_le_bytes(),
            );
            config.put(ZEROES_MAY_UNMAP, &[1]);
        }
        if !options.read_only {
            config.put(MAX_ZEROES, &MAX_ZEROES_SECTORS.to_le_bytes());
            config.put(MAX_ZEROES_SEG, &1u32.to_le_bytes());
        }
        config
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        self.0[at..at + data.len()].copy_from_slice(data);
    }

    /// Fills `data` from `offset` for a disk of `bytes` bytes; past the end there are zeros.
    pub(super) fn read(&self, bytes: u64, offset: u64, data: &mut [u8]) {
        let mut space = self.0;
        space[CAPACITY..CAPACITY + 8].copy_from_slice(&(bytes / SECTOR_SIZE).to_le_bytes());
        read_space(&space, offset, data);
    }
}
