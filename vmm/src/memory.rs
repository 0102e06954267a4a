//! Guest RAM: memory of this process, given to KVM as one slot per range.
//!
//! It is private anonymous memory in huge pages where the kernel has them at hand, or hugetlb pages
//! if the VMI asks for them. Host and guest addresses agree in their lower bits, so that KVM can map
//! as large pages as the host has. The first 16 MiB are ordinary pages (ADR 7): what a start and small guests touch
//! there costs what it takes, and a Linux hardly uses them.

mod file;

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use devices::GuestMemory;
use devices::vfio::{Dma, DmaError};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::layout;
use crate::numa::{self, Part};
use crate::plan::{MemoryPlan, NodePlan};

/// The usual large page, bytes.
const HUGE_PAGE: usize = 2 << 20;

/// What is never in huge pages, at the start of each range, bytes. In the first one Linux's kernel lies behind it, and
/// its allocator takes this zone last; of the range above 4 GiB it is little.
const SMALL_PAGES: usize = 16 << 20;

/// Pages asked about at a time, 16 MiB.
const ASKED: usize = 4096;

const PAGE: usize = 4096;

/// Guest RAM cannot be set up.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host has no such memory.
    #[error("Cannot map {bytes} bytes of guest RAM")]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The regions do not fit the guest's address space.
    #[error("Guest RAM of {bytes} bytes does not fit its address map")]
    Arrange {
        /// Size of the RAM.
        bytes: u64,
    },
    /// The pages could not be given back.
    #[error("Cannot clear guest RAM")]
    Clear(#[source] io::Error),
    /// A snapshot's RAM could not be taken.
    #[error("Cannot take guest RAM from the snapshot")]
    Load(#[source] io::Error),
    /// The host's devices cannot have it, or cannot be kept from it.
    #[error(transparent)]
    Dma(#[from] DmaError),
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

/// Guest RAM, which outlives machine resets. A process has one and never unmaps it, so that a
/// pointer into it stays good.
pub struct Ram {
    bytes: u64,
    kind: Kind,
    memory: Arc<GuestMemory>,
    /// Untouched pages are a file's and not zero.
    from_file: AtomicBool,
    /// All pages are there and stay there.
    locked: AtomicBool,
    /// Devices of the host that all of it is shared with.
    shared: OnceLock<Dma>,
    /// Which node of the host pages are of: parts, and the node's number.
    nodes: Vec<(Part, u32)>,
}

impl Ram {
    /// Maps guest RAM as `plan` says, not in core dumps. Ordinary pages are not reserved, hugetlb
    /// pages are. A part of it is of each of `nodes`, if there are some.
    pub fn map(plan: &MemoryPlan, nodes: &[NodePlan]) -> Result<Self, MemoryError> {
        let kind = Kind::of(plan);
        let regions = layout::ram_ranges(plan.bytes)
            .into_iter()
            .map(|(base, bytes)| kind.map_region(bytes, base))
            .collect::<Result<_, _>>()?;
        let arrange = |_| MemoryError::Arrange { bytes: plan.bytes };
        let memory = GuestMemory::from_regions(regions).map_err(arrange)?;
        let parts = numa::parts(plan.bytes, nodes).into_iter();
        let ram = Self {
            bytes: plan.bytes,
            kind,
            memory: Arc::new(memory),
            from_file: AtomicBool::new(false),
            locked: AtomicBool::new(false),
            shared: OnceLock::new(),
            nodes: parts
                .map(|part| (part, nodes[part.node].host.number))
                .collect(),
        };
        ram.prefer_nodes();
        Ok(ram)
    }

    /// Has pages that come from now on be of their nodes. Where that cannot be, the kernel chooses, which is told.
    fn prefer_nodes(&self) {
        for (part, node) in &self.nodes {
            let start = self.memory.get_host_address(GuestAddress(part.base));
            let preferred = match start {
                Ok(start) => numa::prefer(*node, start, part.len),
                Err(error) => Err(io::Error::other(error)),
            };
            if let Err(error) = preferred {
                tracing::warn!("guest RAM lies on any NUMA node, not on {node} alone: {error}");
                return;
            }
        }
    }

    /// Has all pages in memory and keeps them there, as hugetlb pages are anyway. Where that may not be, RAM stays as it is,
    /// which is told.
    pub fn lock(&self) {
        if self.kind != Kind::Ordinary {
            return;
        }
        let mut regions = self.memory.iter();
        let locked =
            regions.try_for_each(|region| lock_pages(region.as_ptr(), region.len() as usize));
        self.locked.store(locked.is_ok(), Ordering::Relaxed);
        if let Err(error) = locked {
            self.unlock();
            tracing::warn!(
                "guest RAM may be swapped out: {error}; RLIMIT_MEMLOCK must be {} bytes at least, or the launcher \
                 have CAP_SYS_RESOURCE",
                self.bytes
            );
        }
    }

    fn unlock(&self) {
        for region in self.memory.iter() {
            // SAFETY: the range is mapped, and nobody relies on its pages being in memory.
            let _never_fails_on_it =
                unsafe { libc::munlock(region.as_ptr().cast(), region.len() as usize) };
        }
    }

    /// The mapping.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that cost host memory now.
    pub fn resident(&self) -> u64 {
        let mut pages = vec![0; ASKED];
        self.memory
            .iter()
            .map(|region| resident(region, &mut pages))
            .sum()
    }

    /// Shares it with devices of the host, for which all of it is in memory from now on and stays there.
    pub fn share(&self, devices: Dma) -> Result<(), MemoryError> {
        devices.map(&self.memory)?;
        // There is one container, and it is shared with once.
        let _ = self.shared.set(devices);
        Ok(())
    }

    /// Gives all pages back to the host; they read as zero afterwards. Locked RAM gets new ones, and so does RAM that devices
    /// of the host share, which must not be using it.
    pub fn clear(&self) -> Result<(), MemoryError> {
        let locked = self.locked.load(Ordering::Relaxed);
        if locked {
            // Locked pages cannot be given back.
            self.unlock();
        }
        if let Some(devices) = self.shared.get() {
            devices.unmap(&self.memory)?;
        }
        self.give_back()?;
        if locked {
            self.lock();
        }
        if let Some(devices) = self.shared.get() {
            devices.map(&self.memory)?;
        }
        Ok(())
    }

    fn give_back(&self) -> Result<(), MemoryError> {
        if self.from_file.swap(false, Ordering::Relaxed) {
            // Given back, they would be the file's again.
            return self.map_anew().map_err(MemoryError::Clear);
        }
        for region in self.memory.iter() {
            let advice = match self.kind {
                Kind::Ordinary => libc::MADV_DONTNEED,
                Kind::HugeTlb { .. } => libc::MADV_REMOVE,
            };
            advise(region.as_ptr(), region.len() as usize, advice).map_err(MemoryError::Clear)?;
        }
        Ok(())
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

/// Where the pages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Whatever the kernel has.
    Ordinary,
    /// Reserved huge pages of this size in bytes.
    HugeTlb { page_size: u64 },
}

impl Kind {
    fn of(plan: &MemoryPlan) -> Self {
        let huge = |page_size| Self::HugeTlb { page_size };
        plan.hugepage_size.map_or(Self::Ordinary, huge)
    }

    /// Flags of `mmap`. Holes can be punched into hugetlb pages on any kernel if they are shared.
    fn flags(self) -> i32 {
        match self {
            Self::Ordinary => libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            Self::HugeTlb { page_size } => {
                let size = page_size.trailing_zeros() << libc::MAP_HUGE_SHIFT;
                libc::MAP_SHARED | libc::MAP_HUGETLB | size as i32
            }
        }
    }

    /// Largest page there can be, bytes.
    fn alignment(self) -> usize {
        match self {
            Self::Ordinary => HUGE_PAGE,
            Self::HugeTlb { page_size } => page_size as usize,
        }
    }

    fn map_region(self, bytes: u64, base: u64) -> Result<GuestRegionMmap<()>, MemoryError> {
        let arrange = MemoryError::Arrange { bytes };
        let Ok(size) = usize::try_from(bytes) else {
            return Err(arrange);
        };
        let start = self
            .map_aligned(size)
            .map_err(|source| MemoryError::Map { bytes, source })?;
        self.advise_new(start, size)
            .map_err(MemoryError::DontDump)?;
        // SAFETY: the range was mapped above and is never unmapped.
        let mapping = unsafe { MmapRegionBuilder::new(size).with_raw_mmap_pointer(start) }
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(self.flags() | libc::MAP_ANONYMOUS)
            .build();
        let region = mapping
            .ok()
            .and_then(|mapping| GuestRegionMmap::new(mapping, GuestAddress(base)));
        region.ok_or(arrange)
    }

    /// Keeps new memory out of core dumps, and has it in huge pages.
    fn advise_new(self, start: *mut u8, size: usize) -> io::Result<()> {
        advise(start, size, libc::MADV_DONTDUMP)?;
        if self == Self::Ordinary && size > SMALL_PAGES {
            // A kernel without huge pages refuses, and RAM is what it is.
            let _ = advise(
                start.wrapping_add(SMALL_PAGES),
                size - SMALL_PAGES,
                libc::MADV_HUGEPAGE,
            );
        }
        Ok(())
    }

    /// New memory at an address that is a multiple of the alignment.
    fn map_aligned(self, size: usize) -> io::Result<*mut u8> {
        let alignment = self.alignment();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let space = map(ptr::null_mut(), size + alignment, libc::PROT_NONE, flags)?;
        let start = space.wrapping_add(space.align_offset(alignment));
        let flags = self.flags() | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        map(start, size, libc::PROT_READ | libc::PROT_WRITE, flags)
    }
}

/// Maps anonymous memory. With `MAP_FIXED` only where this module has reserved the addresses.
fn map(address: *mut u8, size: usize, protection: i32, flags: i32) -> io::Result<*mut u8> {
    // SAFETY: new addresses are nobody's, and those that `map_aligned` passes are its own.
    let mapped = unsafe { libc::mmap(address.cast(), size, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(mapped.cast())
}

/// Advises the kernel about a part of guest RAM, whose contents may be lost.
fn advise(start: *mut u8, len: usize, advice: i32) -> io::Result<()> {
    // SAFETY: the range is guest RAM, to which Rust holds no reference and of whose contents it
    // assumes nothing.
    if unsafe { libc::madvise(start.cast(), len, advice) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Has a part of guest RAM in memory until it is unlocked.
fn lock_pages(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the range is mapped; nothing in it changes.
    match unsafe { libc::mlock(start.cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bytes of `region` that are in memory; `pages` is space for the answers.
fn resident(region: &GuestRegionMmap<()>, pages: &mut [u8]) -> u64 {
    let (start, len) = (region.as_ptr(), region.len() as usize);
    let mut found = 0;
    for offset in (0..len).step_by(pages.len() * PAGE) {
        let part = (len - offset).min(pages.len() * PAGE);
        let answers = &mut pages[..part.div_ceil(PAGE)];
        let first = start.wrapping_add(offset).cast();
        // SAFETY: the range is mapped, and there is a byte for each page of it.
        if unsafe { libc::mincore(first, part, answers.as_mut_ptr()) } == 0 {
            found += answers.iter().filter(|answer| **answer & 1 != 0).count();
        }
    }
    (found * PAGE) as u64
}

impl std::fmt::Debug for Ram {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Ram({} bytes, {:?})", self.bytes, self.kind)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn ram(bytes: u64) -> Ram {
        let hugepage_size = None;
        let plan = MemoryPlan {
            bytes,
            hugepage_size,
        };
        Ram::map(&plan, &[]).expect("map")
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
    fn large_pages_of_the_host_are_large_pages_of_the_guest() {
        let ram = ram((3 << 30) + (4 << 20));
        for region in ram.memory().iter() {
            assert_eq!(region.as_ptr().align_offset(HUGE_PAGE), 0);
            assert!(region.start_addr().0.is_multiple_of(HUGE_PAGE as u64));
        }
    }

    #[test]
    fn untouched_ram_costs_nothing_and_clearing_gives_it_back() {
        let ram = ram(64 << 20);
        assert_eq!(ram.resident(), 0);
        for address in [0x5000, (16 << 20) - 1] {
            ram.memory()
                .write_obj(1_u8, GuestAddress(address))
                .expect("write");
        }
        assert_eq!(ram.resident(), 8192, "the start is in small pages");
        ram.memory()
            .write_obj(1_u8, GuestAddress(40 << 20))
            .expect("write");
        assert!((12288..=(2 << 20) + 8192).contains(&ram.resident()));
        ram.clear().expect("clear");
        assert_eq!(ram.resident(), 0);
        for address in [0x5000, 40 << 20] {
            let byte = ram.memory().read_obj::<u8>(GuestAddress(address));
            assert_eq!(byte.expect("read"), 0);
        }
    }

    /// A few MiB may be locked by everybody.
    #[test]
    fn locked_ram_is_there_and_cleared_ram_again() {
        let ram = ram(4 << 20);
        ram.lock();
        for time in [1, 2] {
            assert_eq!(ram.resident(), ram.bytes());
            let found = ram.memory().read_obj::<u8>(GuestAddress(0x5000));
            assert_eq!(found.expect("read"), 0, "time {time}");
            let written = ram.memory().write_obj(1_u8, GuestAddress(0x5000));
            written.expect("write");
            ram.clear().expect("clear");
        }
    }
}
