//! The calls of VFIO that the vm process makes on descriptors that the launcher opened.

use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_DMA_MAP_FLAG_READ,
    VFIO_DMA_MAP_FLAG_WRITE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS,
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_TYPE, vfio_device_info, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap, vfio_irq_info, vfio_irq_set, vfio_region_info,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::ioctl_io_nr;

const TYPE: u32 = VFIO_TYPE as u32;
ioctl_io_nr!(VFIO_DEVICE_GET_INFO, TYPE, VFIO_BASE + 7);
ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, TYPE, VFIO_BASE + 8);
ioctl_io_nr!(VFIO_DEVICE_GET_IRQ_INFO, TYPE, VFIO_BASE + 9);
ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, TYPE, VFIO_BASE + 10);
ioctl_io_nr!(VFIO_DEVICE_RESET, TYPE, VFIO_BASE + 11);
ioctl_io_nr!(VFIO_IOMMU_MAP_DMA, TYPE, VFIO_BASE + 13);
ioctl_io_nr!(VFIO_IOMMU_UNMAP_DMA, TYPE, VFIO_BASE + 14);

/// More than the kernel has to say of a region, bytes.
const MAX_INFO: usize = 64 * 1024;

/// A part of the device's file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Region {
    /// Bytes; 0 where the device has no such region.
    pub(super) size: u64,
    /// Where it begins in the file.
    pub(super) start: u64,
    /// What of it may be mapped, from its beginning.
    pub(super) mappable: Vec<Range<u64>>,
}

/// Whether it can be reset; None if it is no PCI device.
pub(super) fn device_info(device: BorrowedFd<'_>) -> io::Result<Option<bool>> {
    let mut info = vfio_device_info {
        argsz: size_of::<vfio_device_info>() as u32,
        ..Default::default()
    };
    // SAFETY: the kernel writes at most `argsz` bytes, which is the structure's size.
    check(unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_GET_INFO(), &mut info) })?;
    let is_pci = info.flags & VFIO_DEVICE_FLAGS_PCI != 0;
    Ok(is_pci.then_some(info.flags & VFIO_DEVICE_FLAGS_RESET != 0))
}

/// What region number `index` is.
pub(super) fn region(device: BorrowedFd<'_>, index: u32) -> io::Result<Region> {
    const LEN: usize = size_of::<vfio_region_info>();
    // The structure, and behind it what the kernel adds; in words, as it wants them aligned.
    let mut words = vec![0_u64; LEN.div_ceil(8)];
    loop {
        let bytes = words.len() * 8;
        // SAFETY: there is room for the structure, which is made of plain numbers, and words are aligned as it is.
        let info = unsafe { &mut *words.as_mut_ptr().cast::<vfio_region_info>() };
        info.argsz = bytes as u32;
        info.index = index;
        // SAFETY: the kernel writes at most `argsz` bytes, which is what there is behind the reference's address.
        check(unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_GET_REGION_INFO(), info) })?;
        let wanted = info.argsz as usize;
        if wanted <= bytes || wanted > MAX_INFO {
            let info = *info;
            return Ok(read_region(&info, &words));
        }
        words = vec![0; wanted.div_ceil(8)];
    }
}

fn read_region(info: &vfio_region_info, words: &[u64]) -> Region {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let is_mappable = info.flags & VFIO_REGION_INFO_FLAG_MMAP != 0;
    let has_more = info.flags & VFIO_REGION_INFO_FLAG_CAPS != 0;
    let sparse = has_more
        .then(|| sparse(&bytes, info.cap_offset as usize))
        .flatten();
    let all = || std::iter::once(0..info.size).collect();
    Region {
        size: info.size,
        start: info.offset,
        mappable: match is_mappable {
            true => sparse.unwrap_or_else(all),
            false => Vec::new(),
        },
    }
}

/// The areas that alone may be mapped, if the kernel says so.
fn sparse(bytes: &[u8], mut at: usize) -> Option<Vec<Range<u64>>> {
    let u16_at = |at: usize| Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    while at != 0 {
        if u32::from(u16_at(at)?) == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let count = u32_at(at + 8)? as usize;
            let areas = (0..count).map(|area| {
                let start = u64_at(at + 16 + area * 16)?;
                Some(start..start.checked_add(u64_at(at + 24 + area * 16)?)?)
            });
            return areas.collect();
        }
        let next = u32_at(at + 4)? as usize;
        // They follow each other, so this ends.
        at = if next > at { next } else { 0 };
    }
    None
}

/// How many interrupts of this kind it has.
pub(super) fn interrupts(device: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
    let mut info = vfio_irq_info {
        argsz: size_of::<vfio_irq_info>() as u32,
        index,
        ..Default::default()
    };
    // SAFETY: the kernel writes at most `argsz` bytes, which is the structure's size.
    check(unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_GET_IRQ_INFO(), &mut info) })?;
    Ok(info.count)
}

/// Has the first interrupts of a kind write to these events; none: the kind is off.
pub(super) fn set_interrupts(
    device: BorrowedFd<'_>,
    index: u32,
    events: &[EventFd],
) -> io::Result<()> {
    const HEADER: usize = size_of::<vfio_irq_set>();
    let data = match events.is_empty() {
        true => VFIO_IRQ_SET_DATA_NONE,
        false => VFIO_IRQ_SET_DATA_EVENTFD,
    };
    let fields = [
        (HEADER + events.len() * 4) as u32,
        data | VFIO_IRQ_SET_ACTION_TRIGGER,
        index,
        0,
        events.len() as u32,
    ];
    const { assert!(HEADER == 5 * 4) };
    let descriptors = events.iter().map(|event| event.as_raw_fd() as u32);
    let words: Vec<u32> = fields.into_iter().chain(descriptors).collect();
    // SAFETY: the kernel reads `argsz` bytes, which is the length of `words`.
    check(unsafe { ioctl_with_ref(&device, VFIO_DEVICE_SET_IRQS(), &words[0]) })
}

/// Resets the device.
pub(super) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call has no argument.
    check(unsafe { ioctl(&device, VFIO_DEVICE_RESET()) })
}

/// Lets the devices of a container read and write `size` bytes of this process's memory at `address` as theirs at `iova`.
///
/// # Safety
///
/// Until it is unmapped nobody may rely on what that memory holds, as a device may write there at any time.
pub(super) unsafe fn map(
    container: BorrowedFd<'_>,
    iova: u64,
    size: u64,
    address: u64,
) -> io::Result<()> {
    let map = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
        flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: address,
        iova,
        size,
    };
    // SAFETY: the kernel reads the structure; what it maps is the caller's word.
    check(unsafe { ioctl_with_ref(&container, VFIO_IOMMU_MAP_DMA(), &map) })
}

/// Takes that back.
pub(super) fn unmap(container: BorrowedFd<'_>, iova: u64, size: u64) -> io::Result<()> {
    let mut unmap = vfio_iommu_type1_dma_unmap {
        argsz: size_of::<vfio_iommu_type1_dma_unmap>() as u32,
        iova,
        size,
        ..Default::default()
    };
    // SAFETY: the kernel writes at most `argsz` bytes, which is the structure's size.
    check(unsafe { ioctl_with_mut_ref(&container, VFIO_IOMMU_UNMAP_DMA(), &mut unmap) })
}

fn check(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        // So many interrupts could be had.
        1.. => Err(io::ErrorKind::StorageFull.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u32) -> vfio_region_info {
        vfio_region_info {
            flags,
            size: 0x4000,
            offset: 1 << 40,
            cap_offset: 32,
            ..Default::default()
        }
    }

    /// Two capabilities, the second of which names two areas.
    fn words(count: u32) -> Vec<u64> {
        let head = |id: u64, next: u64| id | 1 << 16 | next << 32;
        let mut words = vec![0; 4];
        words.extend([head(3, 40), head(1, 0), u64::from(count)]);
        words.extend([0, 0x1000, 0x2000, 0x2000]);
        words
    }

    #[test]
    fn a_region_says_what_of_it_may_be_mapped() {
        let mappable = |flags, words: &[u64]| {
            let areas = read_region(&info(flags), words).mappable;
            let bounds = areas.into_iter().map(|area| (area.start, area.end));
            bounds.collect::<Vec<_>>()
        };
        let (mmap, caps) = (VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_CAPS);
        assert!(mappable(0, &words(2)).is_empty());
        assert_eq!(mappable(mmap, &words(2)), [(0, 0x4000)]);
        assert_eq!(
            mappable(mmap | caps, &words(2)),
            [(0, 0x1000), (0x2000, 0x4000)]
        );
        let only_one = words(1);
        assert_eq!(mappable(mmap | caps, &only_one), [(0, 0x1000)]);
        // A kernel that says more than it wrote: as if it had not said it.
        assert_eq!(mappable(mmap | caps, &words(u32::MAX)), [(0, 0x4000)]);
    }
}
