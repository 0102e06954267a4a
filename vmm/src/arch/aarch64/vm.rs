//! What a VM needs of KVM on Arm.

use kvm_ioctls::{Cap, VmFd};

use crate::kvm::api::KvmError;

/// Beside what every architecture requires.
pub const REQUIRED: [(Cap, &str); 1] = [(Cap::ArmPsci02, "KVM_CAP_ARM_PSCI_0_2")];

/// Makes nothing: the interrupt controller needs the vCPUs first.
pub fn prepare(_vm: &VmFd) -> Result<(), KvmError> {
    Ok(())
}
