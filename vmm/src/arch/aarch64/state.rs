//! What KVM keeps of a machine; it cannot be saved yet.

use devices::state::State;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::kvm::api::KvmError;

/// KVM's part of a machine cannot be saved or put back.
#[derive(Debug, Error)]
pub enum StateError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Nobody knows how.
    #[error("podvisor cannot save the state of machines on aarch64 yet")]
    NotYet,
}

/// The registers to save, of one host.
pub struct SavedMsrs;

impl SavedMsrs {
    /// Asks nothing.
    pub fn of(_kvm: &Kvm) -> Result<Self, KvmError> {
        Ok(Self)
    }
}

/// A vCPU that does not run.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState;

impl State for VcpuState {
    const KIND: &'static str = "aarch64 vCPU";
    const VERSION: u32 = 1;
}

impl VcpuState {
    /// Refuses.
    pub fn save(_vcpu: &VcpuFd, _msrs: &SavedMsrs) -> Result<Self, StateError> {
        Err(StateError::NotYet)
    }

    /// Refuses.
    pub fn restore(&self, _vcpu: &VcpuFd) -> Result<(), StateError> {
        Err(StateError::NotYet)
    }
}

/// What the vCPUs share.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState;

impl State for VmState {
    const KIND: &'static str = "aarch64 interrupt controller";
    const VERSION: u32 = 1;
}

impl VmState {
    /// Refuses.
    pub fn save(_vm: &VmFd) -> Result<Self, StateError> {
        Err(StateError::NotYet)
    }

    /// Refuses.
    pub fn restore(&self, _vm: &VmFd) -> Result<(), StateError> {
        Err(StateError::NotYet)
    }
}
