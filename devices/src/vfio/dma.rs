//! What the host's devices may reach: guest RAM, all of which stays in memory as long as they may.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use thiserror::Error;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::ioctls;
use crate::GuestMemory;

/// Guest RAM cannot be given to devices, or taken from them.
#[derive(Debug, Error)]
#[error("Cannot {action} {bytes} bytes of guest RAM at {base:#x} {with} the host's devices")]
pub struct DmaError {
    action: &'static str,
    with: &'static str,
    base: u64,
    bytes: u64,
    /// The cause.
    #[source]
    source: io::Error,
}

/// A VFIO container whose IOMMU type is set.
pub struct Dma(OwnedFd);

impl Dma {
    /// Wraps what the launcher opened.
    pub fn new(container: OwnedFd) -> Self {
        Self(container)
    }

    /// Pins guest RAM and lets devices have it at the guest's addresses.
    pub fn map(&self, memory: &GuestMemory) -> Result<(), DmaError> {
        for region in memory.iter() {
            let (base, bytes) = (region.start_addr().raw_value(), region.len());
            // SAFETY: it is guest RAM, to which Rust holds no reference and of whose contents it assumes nothing, and
            // which is mapped until this process ends.
            let mapped =
                unsafe { ioctls::map(self.0.as_fd(), base, bytes, region.as_ptr() as u64) };
            mapped.map_err(|source| DmaError {
                action: "share",
                with: "with",
                base,
                bytes,
                source,
            })?;
        }
        Ok(())
    }

    /// Takes it from them.
    pub fn unmap(&self, memory: &GuestMemory) -> Result<(), DmaError> {
        for region in memory.iter() {
            let (base, bytes) = (region.start_addr().raw_value(), region.len());
            ioctls::unmap(self.0.as_fd(), base, bytes).map_err(|source| DmaError {
                action: "take back",
                with: "from",
                base,
                bytes,
                source,
            })?;
        }
        Ok(())
    }
}
