//! Guest RAM: mapped from the launcher's memfd, given to KVM as one slot per side of the hole.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use devices::GuestMemory;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::FallocateFlags;
use thiserror::Error;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::layout;

/// Guest RAM cannot be set up.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The memfd cannot be mapped.
    #[error("Cannot map {bytes} bytes of guest RAM")]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// The cause.
        #[source]
        source: MmapRegionError,
    },
    /// The regions do not fit the guest's address space.
    #[error("Guest RAM of {bytes} bytes does not fit its address map")]
    Arrange {
        /// Size of the RAM.
        bytes: u64,
    },
    /// The memfd could not be emptied.
    #[error("Cannot clear guest RAM")]
    Clear(#[source] io::Error),
    /// The mapping could not be marked as not to be dumped.
    #[error("Cannot keep guest RAM out of core dumps")]
    DontDump(#[source] io::Error),
    /// KVM refused a slot.
    #[error("KVM refused a memory slot of {bytes} bytes at {base:#x}")]
    Slot {
        /// Guest physical base.
        base: u64,
        /// Size.
        bytes: u64,
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Guest RAM and the memfd behind it, which outlives machine resets.
pub struct Ram {
    file: Arc<File>,
    bytes: u64,
    memory: Arc<GuestMemory>,
}

impl Ram {
    /// Maps `bytes` of `memfd` as guest RAM, shared, not reserved and not in core dumps.
    pub fn map(memfd: OwnedFd, bytes: u64) -> Result<Self, MemoryError> {
        let file = Arc::new(File::from(memfd));
        let (below, above) = layout::split_ram(bytes);
        let mut regions = vec![map_region(&file, 0, below, 0)?];
        if above > 0 {
            regions.push(map_region(&file, below, above, layout::HOLE_END)?);
        }
        let memory =
            GuestMemory::from_regions(regions).map_err(|_| MemoryError::Arrange { bytes })?;
        Ok(Self {
            file,
            bytes,
            memory: Arc::new(memory),
        })
    }

    /// The mapping.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that have been touched and so cost host memory.
    pub fn resident(&self) -> u64 {
        const BLOCK: u64 = 512;
        rustix::fs::fstat(&self.file)
            .map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK)
    }

    /// Gives all pages back to the host; they read as zero afterwards.
    pub fn clear(&self) -> Result<(), MemoryError> {
        rustix::fs::fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            0,
            self.bytes,
        )
        .map_err(|errno| MemoryError::Clear(errno.into()))
    }

    /// Makes the RAM visible in `vm`. The caller keeps `self` alive as long as `vm`.
    pub fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let kvm_region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the range is a mapping owned by self.memory, which Machine drops after its
            // VM; slots do not overlap because the regions do not.
            unsafe { vm.set_user_memory_region(kvm_region) }.map_err(|source| {
                MemoryError::Slot {
                    base: kvm_region.guest_phys_addr,
                    bytes: kvm_region.memory_size,
                    source,
                }
            })?;
        }
        Ok(())
    }
}

fn map_region(
    file: &Arc<File>,
    offset: u64,
    bytes: u64,
    base: u64,
) -> Result<GuestRegionMmap<()>, MemoryError> {
    let size = usize::try_from(bytes).map_err(|_| MemoryError::Arrange { bytes })?;
    let mapping = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::from_arc(file.clone(), offset))
        .build()
        .map_err(|source| MemoryError::Map { bytes, source })?;
    // SAFETY: the range is the mapping made above; MADV_DONTDUMP changes no contents.
    let advised = unsafe { libc::madvise(mapping.as_ptr().cast(), size, libc::MADV_DONTDUMP) };
    if advised != 0 {
        return Err(MemoryError::DontDump(io::Error::last_os_error()));
    }
    GuestRegionMmap::new(mapping, GuestAddress(base)).ok_or(MemoryError::Arrange { bytes })
}

impl std::fmt::Debug for Ram {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "Ram({} bytes, fd {})",
            self.bytes,
            self.file.as_raw_fd()
        )
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::MemfdFlags;
    use vm_memory::Bytes;

    use super::*;

    fn ram(bytes: u64) -> Ram {
        let memfd = rustix::fs::memfd_create("ram", MemfdFlags::CLOEXEC).expect("memfd");
        rustix::fs::ftruncate(&memfd, bytes).expect("size");
        Ram::map(memfd, bytes).expect("map")
    }

    #[test]
    fn both_sides_of_the_hole_are_there_and_the_hole_is_not() {
        let ram = ram((3 << 30) + (1 << 20));
        let memory = ram.memory();
        memory
            .write_obj(0x1234_u32, GuestAddress(layout::HOLE_START - 4))
            .expect("below");
        memory
            .write_obj(0x5678_u32, GuestAddress(layout::HOLE_END))
            .expect("above");
        assert!(
            memory
                .write_obj(0_u8, GuestAddress(layout::HOLE_START))
                .is_err()
        );
        assert!(
            memory
                .write_obj(0_u8, GuestAddress(layout::HOLE_END + (1 << 20)))
                .is_err()
        );
    }

    #[test]
    fn untouched_ram_costs_nothing_and_clearing_gives_it_back() {
        let ram = ram(64 << 20);
        assert_eq!(ram.resident(), 0);
        ram.memory()
            .write_obj(1_u8, GuestAddress(0x5000))
            .expect("write");
        assert_eq!(ram.resident(), 4096);
        ram.clear().expect("clear");
        assert_eq!(ram.resident(), 0);
        assert_eq!(
            ram.memory()
                .read_obj::<u8>(GuestAddress(0x5000))
                .expect("read"),
            0
        );
    }
}
