//! PCI devices of the host that a guest has to itself, by the kernel's VFIO.

/// Most interrupts of a device that a guest may use; one that has more seems to have so many. An event each.
pub const MAX_VECTORS: u16 = 256;
