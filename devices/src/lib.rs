//! Device models of podvisor and their backends.
//!
//! This crate knows virtio, PCI configuration space and a few legacy ports. It knows neither KVM
//! nor Kubernetes: the machine (`vmm`) hands it guest memory and implementations of the small
//! traits in [`irq`], and calls the register faces ([`bus::BusDevice`], [`pci::PciFunction`]) from
//! vCPU threads. Each virtio device moves its queues into worker threads when the driver sets
//! `DRIVER_OK`.

pub mod at_once;
pub mod bus;
pub mod character;
pub mod host_errors;
pub mod irq;
pub mod legacy;
pub mod lock;
pub mod pci;
pub mod pod_net;
pub mod state;
pub mod tap;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod thread;
pub mod trace;
pub mod vfio;
pub mod virtio;
pub mod wake;
pub mod watchdog;

/// Guest physical memory as every device sees it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
