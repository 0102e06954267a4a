//! Block sizes of what an image is on, as KubeVirt tells them: a device has two, a file system has one.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use devices::virtio::block::BlockOptions;
use rustix::fs::{FileType, fstat, fstatfs, ioctl_blkpbszget, ioctl_blksszget};
use serde::{Deserialize, Serialize};

/// Logical blocks that guests take; larger ones are told as physical.
const LOGICAL: std::ops::RangeInclusive<u32> = 512..=4096;

/// Largest physical block, as in KubeVirt.
const MAX_PHYSICAL: u32 = 2 << 20;

/// Those of a disk, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BlockSizes {
    /// The smallest request.
    pub logical: u32,
    /// What the storage writes at once.
    pub physical: u32,
}

impl BlockSizes {
    /// Says in the options of a disk that it has these.
    pub fn settle(self, options: &mut BlockOptions) {
        options.logical_block_size = self.logical;
        options.physical_block_size = self.physical;
    }

    /// The nearest that a disk can have.
    fn fitting(logical: u32, physical: u32) -> Self {
        let power = |size: u32, least, most| match size.is_power_of_two() {
            true => size.clamp(least, most),
            false => least,
        };
        let told = power(logical, *LOGICAL.start(), *LOGICAL.end());
        Self {
            logical: told,
            physical: power(physical.max(logical), told, MAX_PHYSICAL),
        }
    }
}

impl fmt::Display for BlockSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { logical, physical } = self;
        write!(f, "blocks of {logical} bytes, {physical} at once")
    }
}

/// Those of a block device, or of the file system that the file is in.
pub(super) fn of(image: impl AsFd) -> io::Result<BlockSizes> {
    if FileType::from_raw_mode(fstat(&image)?.st_mode) == FileType::BlockDevice {
        let (logical, physical) = (ioctl_blksszget(&image)?, ioctl_blkpbszget(&image)?);
        return Ok(BlockSizes::fitting(logical, physical));
    }
    let size = u32::try_from(fstatfs(&image)?.f_bsize).unwrap_or(MAX_PHYSICAL);
    Ok(BlockSizes::fitting(size, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_the_nearest_sizes_that_it_can_have() {
        for (logical, physical, told) in [
            (512, 512, (512, 512)),
            (512, 4096, (512, 4096)),
            (4096, 512, (4096, 4096)),
            // A file system over the network.
            (1 << 20, 1 << 20, (4096, 1 << 20)),
            (1 << 30, 1 << 30, (4096, 2 << 20)),
            // What says nothing.
            (0, 0, (512, 512)),
            (0, 4096, (512, 4096)),
            (520, 520, (512, 512)),
        ] {
            let BlockSizes { logical, physical } = BlockSizes::fitting(logical, physical);
            assert_eq!((logical, physical), told);
        }
    }
}
