//! The guest's processors: the host's own, started by PSCI.

use std::os::fd::BorrowedFd;

use devices::GuestMemory;
use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_REG_ARM_CORE, KVM_REG_ARM64,
    KVM_REG_SIZE_U64, kvm_vcpu_init,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::boot::EntryPoint;
use crate::kvm::api::KvmError;
use crate::plan::CpuPlan;

/// What the host's processor shows guests; it cannot be asked for, nor changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCpu;

impl HostCpu {
    /// Asks nothing.
    pub fn ask(_kvm: BorrowedFd<'_>) -> Result<Self, KvmError> {
        Ok(Self)
    }
}

/// The plan's processors cannot be had.
#[derive(Debug, Error)]
pub enum CpuError {
    /// Features have no names here.
    #[error("CPU feature {name:?} is not known")]
    Unknown {
        /// The name.
        name: String,
    },
}

impl CpuError {
    /// Whether the fault is in the features asked for.
    pub fn is_refusal(&self) -> bool {
        true
    }
}

/// Registers cannot be set.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// Whether a model of this name can be in a plan.
pub fn is_known_model(_name: &str) -> bool {
    false
}

/// The models that can be in a plan.
pub fn model_names() -> Vec<&'static str> {
    Vec::new()
}

/// No feature can be in a plan.
pub fn is_known_feature(_name: &str) -> bool {
    false
}

/// What a machine's processors are.
pub struct Processors {
    count: u32,
}

impl Processors {
    /// The plan's processors.
    pub fn new(_kvm: &Kvm, _host: &HostCpu, plan: &CpuPlan) -> Result<Self, CpuError> {
        match plan.features.first() {
            Some(feature) => Err(CpuError::Unknown {
                name: feature.name.clone(),
            }),
            None => Ok(Self {
                count: plan.count(),
            }),
        }
    }

    /// What vCPU 0 sees.
    pub fn boot_cpuid(&self) -> HostCpu {
        HostCpu
    }

    /// The same, to be kept.
    pub fn seen(&self) -> HostCpu {
        HostCpu
    }

    /// Makes the vCPUs; all but the first wait for PSCI.
    pub fn create(&self, vm: &VmFd) -> Result<Vec<VcpuFd>, RegisterError> {
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init)
            .map_err(KvmError::call("KVM_ARM_PREFERRED_TARGET"))?;
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        (0..self.count)
            .map(|index| {
                let vcpu = vm
                    .create_vcpu(index.into())
                    .map_err(KvmError::call("KVM_CREATE_VCPU"))?;
                let mut init = init;
                if index > 0 {
                    init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
                }
                vcpu.vcpu_init(&init)
                    .map_err(KvmError::call("KVM_ARM_VCPU_INIT"))?;
                Ok(vcpu)
            })
            .collect()
    }
}

/// A core register by its place in `struct kvm_regs`, in words of eight bytes: X0 to X30 from 0 on,
/// the stack pointer 31, the instruction pointer 32, the processor state 33.
pub(super) fn core_register(place: u64) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM_CORE) | place * 2
}

/// Puts the boot vCPU at the entry point in the state that Linux wants.
pub fn set_entry(
    vcpu: &VcpuFd,
    _memory: &GuestMemory,
    entry: EntryPoint,
) -> Result<(), RegisterError> {
    const X0: u64 = 0;
    const PC: u64 = 32;
    for (place, value) in [(PC, entry.pc), (X0, entry.device_tree)] {
        vcpu.set_one_reg(core_register(place), &value.to_le_bytes())
            .map_err(KvmError::call("KVM_SET_ONE_REG"))?;
    }
    Ok(())
}
