//! PCI devices of the host that a guest has to itself, by the kernel's VFIO (`linux/vfio.h`).
//!
//! ```text
//!  launcher: container, group, device ──▶ HostDevice (outlives a reset) ──▶ VfioFunction, one a machine
//!
//!  guest ── BAR ──────────▶ the device's own memory, shown to the guest as it is
//!        ── MSI-X table ──▶ Msix ── irqfd ◀── eventfd ◀── the kernel's interrupt of the device
//!        ── config space ─▶ Config ── what is not the guest's is kept here, the rest goes to the kernel
//!  device ── DMA ── IOMMU ▶ guest RAM, all of which is pinned
//! ```
//!
//! A vCPU's filter lets it do none of that: what goes to the kernel goes by the machine's executor. Interrupts are MSI and
//! MSI-X; INTx, I/O ports and expansion ROMs are not passed on.
//!
//! `vfio-ioctls` opens paths of its own, which a vm process has none of, reads sysfs as it lets a device go, and neither takes
//! a device of a group that is open already nor gives away the group's descriptor: so the few calls are here, on the
//! structures of `vfio-bindings`.

mod config;
mod dma;
mod function;
pub mod group;
mod host;
mod ioctls;
mod msi;
mod shape;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use self::dma::{Dma, DmaError};
pub use self::function::{VfioContext, VfioFunction};
pub use self::host::{DeviceMemory, HostDevice, OpenError, Windows};

/// Most interrupts of a device that a guest may use; one that has more seems to have so many. An event each.
pub const MAX_VECTORS: u16 = 256;
