//! What is booted: nothing yet.

use std::convert::Infallible;
use std::io::{Read, Seek};
use std::ops::Range;

use devices::GuestMemory;
use thiserror::Error;

use crate::payload::Payload;
use crate::plan::{CpuPlan, IdentityPlan, NodePlan};

/// A kernel cannot be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// There is no device tree that a kernel could find its machine by.
    #[error("podvisor cannot boot kernels on aarch64 yet")]
    NotYet,
}

impl BootError {
    /// Whether the fault is in what was asked for.
    pub fn is_refusal(&self) -> bool {
        true
    }
}

/// A file is no kernel that can be booted.
#[derive(Debug, Error)]
#[error("podvisor cannot boot kernels on aarch64 yet")]
pub struct KernelFault;

/// Refuses.
pub fn check_kernel(_file: &mut (impl Read + Seek)) -> Result<Infallible, KernelFault> {
    Err(KernelFault)
}

/// How the boot vCPU starts (Linux `Documentation/arch/arm64/booting.rst`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPoint {
    /// Instruction pointer.
    pub pc: u64,
    /// Address of the device tree.
    pub device_tree: u64,
}

/// What is booted.
pub struct BootSource<'a> {
    /// Its files.
    pub payload: &'a mut Payload,
    /// What the machine's tables say of it.
    pub identity: &'a IdentityPlan,
    /// The vCPUs.
    pub cpu: &'a CpuPlan,
    /// PCI slots whose devices come and go.
    pub hotplug_slots: &'a [u8],
    /// NUMA nodes.
    pub nodes: &'a [NodePlan],
    /// PCI memory window above 4 GiB; may be empty.
    pub high_window: &'a Range<u64>,
    /// PCI slots whose devices have an ACPI index, and that.
    pub acpi_indexes: &'a [(u8, u16)],
    /// Size of guest RAM in bytes.
    pub ram_bytes: u64,
}

/// Does nothing: there are no tables in which a guest could find its generation ID.
pub fn renew_generation(_memory: &GuestMemory) -> Result<(), BootError> {
    Ok(())
}

/// Refuses.
pub fn load(_memory: &GuestMemory, _source: BootSource<'_>) -> Result<EntryPoint, BootError> {
    Err(BootError::NotYet)
}
