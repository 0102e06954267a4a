//! What an ELF core says of a vCPU; it cannot be told yet.

use devices::GuestMemory;
use kvm_ioctls::VcpuFd;

use super::state::StateError;
use crate::dump::Mapping;

/// `EM_AARCH64`.
pub const MACHINE: u16 = 183;

/// Refuses.
pub fn status(_vcpu: &VcpuFd, _number: u32) -> Result<Vec<u8>, StateError> {
    Err(StateError::NotYet)
}

/// Refuses.
pub fn kernel_mappings(_vcpu: &VcpuFd, _memory: &GuestMemory) -> Result<Vec<Mapping>, StateError> {
    Err(StateError::NotYet)
}
