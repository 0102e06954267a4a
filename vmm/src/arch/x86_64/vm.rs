//! What a VM needs of KVM on x86, and gets before it has devices and vCPUs.

use kvm_ioctls::{Cap, VmFd};

use super::layout;
use crate::kvm::KvmError;

/// Beside what every architecture requires.
pub const REQUIRED: [(Cap, &str); 3] = [
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
];

/// Makes the interrupt controllers, after the memory slots.
pub fn prepare(vm: &VmFd) -> Result<(), KvmError> {
    let tss = usize::try_from(layout::KVM_TSS).map_err(|_| KvmError::Capability {
        name: "a 64-bit host",
    })?;
    vm.set_tss_address(tss)
        .map_err(KvmError::call("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip()
        .map_err(KvmError::call("KVM_CREATE_IRQCHIP"))
}
