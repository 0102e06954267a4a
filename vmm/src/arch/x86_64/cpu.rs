//! The guest's processors: what the host offers, what the plan makes of it, and vCPUs made so.

mod bits;
mod cpuid;
mod error;
mod features;
mod host;
mod hyperv;
mod hypervisor;
mod models;
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
use self::hyperv::Offered;
use self::topology::Topology;
pub use super::regs::RegisterError;
use super::regs::{self, EntryPoint};
use crate::kvm::api::KvmError;
use crate::plan::{CpuPlan, HypervisorPlan};

/// Whether a feature of this name can be in a plan.
pub fn is_known_feature(name: &str) -> bool {
    features::find(name).is_some()
}

/// Whether a model of this name can be in a plan.
pub fn is_known_model(name: &str) -> bool {
    models::is_known(name)
}

/// The models that can be in a plan.
pub fn model_names() -> Vec<&'static str> {
    models::names().collect()
}

/// APIC ids of the plan's vCPUs in order.
pub fn apic_ids(plan: &CpuPlan) -> Vec<u8> {
    Topology::new(plan).apic_ids()
}

/// What a machine's processors are.
pub struct Processors {
    template: CpuidTemplate,
    apic_ids: Vec<u8>,
    hypervisor: HypervisorPlan,
}

impl Processors {
    /// The plan's processors on this host; a guest made for the purpose sees them so.
    pub fn new(kvm: &Kvm, host: &HostCpu, plan: &CpuPlan) -> Result<Self, CpuError> {
        let plan = &models::expand(plan, host)?;
        let mut template = CpuidTemplate::new(host, plan)?;
        verify::verify(kvm, &template.for_vcpu(0), plan)?;
        let hypervisor = plan.hypervisor.clone();
        let offered = (hypervisor.hyperv.as_ref()).and_then(|_| Offered::ask(kvm));
        if hypervisor.hyperv.is_some() && offered.is_none() {
            tracing::warn!("the host's KVM has no Hyper-V interface: the guest does without");
        }
        if hypervisor.hides_clock() && host.vendor().as_deref() != Some("Intel") {
            tracing::warn!(
                "guests have no clock of KVM's, and on this processor no way to learn their counter's frequency: Linux \
                 needs tsc_early_khz= on its command line"
            );
        }
        template.set_hypervisor(&hypervisor, offered.as_ref())?;
        Ok(Self {
            template,
            apic_ids: apic_ids(plan),
            hypervisor,
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
                let mut cpuid = self.template.for_vcpu(index);
                if self.hypervisor.hides_clock() {
                    let khz = vcpu.get_tsc_khz().unwrap_or(0);
                    hypervisor::tell_frequency(&mut cpuid, &self.hypervisor, khz);
                }
                vcpu.set_cpuid2(&cpuid)
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
