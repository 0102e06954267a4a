//! How devices reach the guest (interrupts) and how the guest reaches them (doorbells).
//!
//! The traits are implemented by the machine with KVM irqfds and ioeventfds, and by fakes in tests.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// One interrupt of a device. Called from worker threads; must not block, allocate or log.
pub trait Irq: Send + Sync {
    /// Raises the interrupt (edge).
    fn raise(&self);

    /// A write to this raises it as well, for a device that the kernel serves: it is held back while the guest has the
    /// interrupt masked. None where the guest has not said which interrupt it is.
    fn event(&self) -> io::Result<Option<EventFd>> {
        Ok(None)
    }
}

/// An MSI message as the guest programmed it into an MSI-X table entry (PCI 3.0, 6.8.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address, 64 bits.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Connects eventfds to guest interrupts: a write to the eventfd makes the kernel deliver `message`.
///
/// Called from vCPU threads with the function's lock held; not a hot path.
pub trait MsiRouter: Send + Sync {
    /// Makes a write to `event` deliver `message`. Replaces an earlier route of the same `vector`.
    ///
    /// `vector` is the value returned by [`MsiRouter::allocate`] plus the MSI-X table index.
    fn connect(&self, vector: u32, message: MsiMessage, event: &EventFd) -> io::Result<()>;

    /// Ends the connection made by [`MsiRouter::connect`]; a vector that is not connected is fine.
    fn disconnect(&self, vector: u32, event: &EventFd) -> io::Result<()>;

    /// Reserves `count` consecutive vectors (KVM: GSIs) for one function.
    fn allocate(&self, count: u32) -> io::Result<u32>;

    /// Gives back what [`MsiRouter::allocate`] reserved from `first` on; none of it is connected.
    fn release(&self, first: u32);
}

/// Connects guest writes at an address to eventfds, without an exit to user space (KVM ioeventfd).
pub trait Doorbells: Send + Sync {
    /// Makes any guest write of 1, 2, 4 or 8 bytes at guest physical `address` signal `event`.
    fn connect(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Ends the connection made by [`Doorbells::connect`].
    fn disconnect(&self, address: u64, event: &EventFd) -> io::Result<()>;
}
