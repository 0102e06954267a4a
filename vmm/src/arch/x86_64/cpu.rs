//! The guest's processors: what the host offers, what the plan makes of it, and vCPUs made so.

mod bits;
mod cpuid;
mod error;
mod features;
mod host;
mod needs;
mod policy;
#[cfg(test)]
mod recorded;
#[cfg(test)]
mod testing;
mod topology;
mod verify;

use devices::GuestMemory;
use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use self::cpuid::CpuidTemplate;
pub use self::error::CpuError;
pub use self::host::HostCpu;
use self::topology::Topology;
use super::boot::EntryPoint;
use super::regs;
pub use super::regs::RegisterError;
use crate::kvm::KvmError;
use crate::plan::CpuPlan;

/// Whether a feature of this name can be in a plan.
pub fn is_known_feature(name: &str) -> bool {
    features::find(name).is_some()
}

/// APIC ids of the plan's vCPUs in order.
pub fn apic_ids(plan: &CpuPlan) -> Vec<u8> {
    Topology::new(plan).apic_ids()
}

/// What a machine's processors are.
pub struct Processors {
    template: CpuidTemplate,
    apic_ids: Vec<u8>,
}

impl Processors {
    /// The plan's processors on this host; a guest made for the purpose sees them so.
    pub fn new(kvm: &Kvm, host: &HostCpu, plan: &CpuPlan) -> Result<Self, CpuError> {
        let template = CpuidTemplate::new(host, plan)?;
        verify::verify(kvm, &template.for_vcpu(0), plan)?;
        Ok(Self {
            template,
            apic_ids: apic_ids(plan),
        })
    }

    /// What vCPU 0 sees.
    pub fn boot_cpuid(&self) -> CpuId {
        self.template.for_vcpu(0)
    }

    /// The same, to be kept.
    pub fn seen(&self) -> HostCpu {
        HostCpu::from(&self.boot_cpuid())
    }

    /// Makes the vCPUs.
    pub fn create(&self, vm: &VmFd) -> Result<Vec<VcpuFd>, RegisterError> {
        (0..)
            .zip(&self.apic_ids)
            .map(|(index, apic_id)| {
                let vcpu = vm
                    .create_vcpu(u64::from(*apic_id))
                    .map_err(KvmError::call("KVM_CREATE_VCPU"))?;
                vcpu.set_cpuid2(&self.template.for_vcpu(index))
                    .map_err(KvmError::call("KVM_SET_CPUID2"))?;
                regs::set_msrs(&vcpu)?;
                regs::set_local_interrupts(&vcpu)?;
                Ok(vcpu)
            })
            .collect()
    }
}

/// Puts the boot vCPU at the entry point in the state that its protocol wants.
pub fn set_entry(
    vcpu: &VcpuFd,
    memory: &GuestMemory,
    entry: EntryPoint,
) -> Result<(), RegisterError> {
    regs::set_entry(vcpu, memory, entry)
}
