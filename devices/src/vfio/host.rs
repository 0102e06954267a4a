//! A device of the host, open: what it has, what of it a guest may have before its eyes, and its calls.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use rustix::io::{pread, pwrite};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use thiserror::Error;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vmm_sys_util::eventfd::EventFd;

use super::config::Interrupts;
use super::ioctls::{self, Region};
use super::shape::Shape;
use crate::pci::BARS;

const PAGE: u64 = 4096;

/// A device of the host cannot be given to a guest.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The kernel refused a call.
    #[error("Cannot {action} the host device {name:?}")]
    Call {
        /// What was tried.
        action: &'static str,
        /// The device.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("Host device {name:?} is {what}")]
    Unfit {
        /// The device.
        name: String,
        /// What it is.
        what: &'static str,
    },
}

/// Memory of a device in this process, which is never unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    address: u64,
    len: u64,
}

impl DeviceMemory {
    /// Where it is in this process.
    pub fn address(self) -> u64 {
        self.address
    }

    /// That is none.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn for_test(len: u64) -> Self {
        Self { address: 0, len }
    }

    /// Bytes, whole pages.
    pub fn bytes(self) -> u64 {
        self.len
    }
}

/// Shows a device's memory to the guest (KVM: memory slots).
pub trait Windows: Send + Sync {
    /// Shows `memory` at guest physical `base`; what to say to [`Windows::hide`]. Refused where the guest has something else.
    fn show(&self, base: u64, memory: DeviceMemory) -> io::Result<u32>;

    /// Takes that back.
    fn hide(&self, window: u32) -> io::Result<()>;
}

/// What a device does, for a function that is made over it.
pub(super) trait Physical: Send + Sync {
    /// Reads registers; ones where there are none.
    fn read(&self, region: usize, offset: u64, data: &mut [u8]);
    /// Writes registers, if they are there.
    fn write(&self, region: usize, offset: u64, data: &[u8]);
    /// Has the interrupts write to these events, as many as there are.
    fn connect(&self, interrupts: Interrupts, events: &[EventFd]) -> io::Result<()>;
    /// Turns them off.
    fn disconnect(&self, interrupts: Interrupts) -> io::Result<()>;
    /// Brings the device to what it is after power-on, as far as it can.
    fn reset(&self) -> io::Result<()>;
}

/// Number of the region that is configuration space.
pub(super) const CONFIG: usize = VFIO_PCI_CONFIG_REGION_INDEX as usize;
const REGIONS: usize = CONFIG + 1;

/// An open device. Outlives a reset of the guest.
pub struct HostDevice {
    name: String,
    device: OwnedFd,
    group: OwnedFd,
    regions: [Region; REGIONS],
    pub(super) shape: Shape,
    /// What of each BAR the guest has before its eyes: where in it, and what.
    pub(super) memory: [Vec<(u64, DeviceMemory)>; BARS],
    can_reset: bool,
}

impl HostDevice {
    /// Asks the kernel what `device` is, and maps its memory. `group` is the one that it is of.
    pub fn open(name: String, device: OwnedFd, group: OwnedFd) -> Result<Self, OpenError> {
        let call = |action: &'static str| {
            let name = name.clone();
            move |source| OpenError::Call {
                action,
                name,
                source,
            }
        };
        let unfit = |what| OpenError::Unfit {
            name: name.clone(),
            what,
        };
        let fd = device.as_fd();
        let can_reset = ioctls::device_info(fd).map_err(call("ask about"))?;
        let can_reset = can_reset.ok_or_else(|| unfit("no PCI device"))?;
        let mut regions: [Region; REGIONS] = Default::default();
        for (index, region) in (0..).zip(&mut regions) {
            // The ROM's is not of use.
            if index as usize == CONFIG || (index as usize) < BARS {
                *region = ioctls::region(fd, index).map_err(call("ask about the regions of"))?;
            }
        }
        let start = regions[CONFIG].start;
        let read = |offset: u16| {
            let mut data = [0xff; 4];
            read_all(fd, start + u64::from(offset), &mut data);
            u32::from_le_bytes(data)
        };
        let sizes = std::array::from_fn(|bar| regions[bar].size);
        let mut shape = Shape::read(regions[CONFIG].size, sizes, read);
        if shape.is_bridge {
            return Err(unfit("a bridge, which is not passed on"));
        }
        let count = |index| ioctls::interrupts(fd, index).map_err(call("ask about interrupts of"));
        // A kernel that does not offer a kind keeps it to itself.
        if count(VFIO_PCI_MSIX_IRQ_INDEX)? == 0 {
            shape.msix = None;
        }
        if count(VFIO_PCI_MSI_IRQ_INDEX)? == 0 {
            shape.msi = None;
        }
        if shape.has_pin && shape.msi.is_none() && shape.msix.is_none() {
            return Err(unfit(
                "one whose interrupts are INTx alone, which is not passed on",
            ));
        }
        let mut memory: [Vec<(u64, DeviceMemory)>; BARS] = Default::default();
        for (bar, memory) in memory.iter_mut().enumerate() {
            if shape.bars[bar].size > 0 {
                let (region, hole) = (&regions[bar], shape.table_pages(bar));
                *memory = map(fd, region, &hole).map_err(call("map the memory of"))?;
            }
        }
        Ok(Self {
            name,
            device,
            group,
            regions,
            shape,
            memory,
            can_reset,
        })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The group, which KVM wants to know of.
    pub fn group(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }

    /// Sizes of its BARs that are to lie above 4 GiB, bytes.
    pub fn high_bars(&self) -> impl Iterator<Item = u64> + Clone {
        let bars = self.shape.bars.iter();
        bars.filter(|bar| bar.is_wide).map(|bar| bar.size)
    }

    fn place(&self, region: usize, offset: u64, len: usize) -> Option<u64> {
        let region = self.regions.get(region)?;
        let end = offset.checked_add(len as u64)?;
        (end <= region.size).then_some(region.start + offset)
    }
}

impl Physical for HostDevice {
    fn read(&self, region: usize, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(place) = self.place(region, offset, data.len()) {
            read_all(self.device.as_fd(), place, data);
        }
    }

    fn write(&self, region: usize, offset: u64, data: &[u8]) {
        if let Some(place) = self.place(region, offset, data.len()) {
            // A device that is gone takes nothing, as on a real bus.
            let _ = pwrite(&self.device, data, place);
        }
    }

    fn connect(&self, interrupts: Interrupts, events: &[EventFd]) -> io::Result<()> {
        ioctls::set_interrupts(self.device.as_fd(), index(interrupts), events)
    }

    fn disconnect(&self, interrupts: Interrupts) -> io::Result<()> {
        ioctls::set_interrupts(self.device.as_fd(), index(interrupts), &[])
    }

    fn reset(&self) -> io::Result<()> {
        match self.can_reset {
            true => ioctls::reset(self.device.as_fd()),
            false => Ok(()),
        }
    }
}

fn index(interrupts: Interrupts) -> u32 {
    match interrupts {
        Interrupts::Msi { .. } => VFIO_PCI_MSI_IRQ_INDEX,
        Interrupts::Msix { .. } => VFIO_PCI_MSIX_IRQ_INDEX,
    }
}

/// Ones where nothing answers.
fn read_all(device: BorrowedFd<'_>, place: u64, data: &mut [u8]) {
    let len = data.len();
    if !pread(device, &mut *data, place).is_ok_and(|read| read == len) {
        data.fill(0xff);
    }
}

/// Maps what may be mapped of a region, but for the pages of `hole`.
fn map(
    device: BorrowedFd<'_>,
    region: &Region,
    hole: &Range<u64>,
) -> io::Result<Vec<(u64, DeviceMemory)>> {
    let areas = region.mappable.iter().flat_map(|area| without(area, hole));
    let areas = areas.filter(|area| area.end <= region.size);
    areas
        .map(|area| {
            let len = area.end - area.start;
            let memory = map_area(device, region.start + area.start, len)?;
            Ok((area.start, memory))
        })
        .collect()
}

fn map_area(device: BorrowedFd<'_>, place: u64, len: u64) -> io::Result<DeviceMemory> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: new addresses are nobody's; nothing of this process is kept there, and nothing reads it but the guest.
    let mapped = unsafe {
        mmap(
            ptr::null_mut(),
            len as usize,
            protection,
            MapFlags::SHARED,
            device,
            place,
        )
    };
    let address = mapped? as u64;
    Ok(DeviceMemory { address, len })
}

/// The whole pages of `area` that are not in `hole`, which is whole pages.
pub(super) fn without(
    area: &Range<u64>,
    hole: &Range<u64>,
) -> impl Iterator<Item = Range<u64>> + use<> {
    let whole = area.start.next_multiple_of(PAGE)..area.end / PAGE * PAGE;
    let parts = match hole.is_empty() {
        true => [whole, 0..0],
        false => [
            whole.start..whole.end.min(hole.start),
            whole.start.max(hole.end)..whole.end,
        ],
    };
    parts.into_iter().filter(|part| !part.is_empty())
}

impl std::fmt::Debug for HostDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostDevice")
            .field("name", &self.name)
            .field("device", &self.device.as_raw_fd())
            .finish_non_exhaustive()
    }
}
