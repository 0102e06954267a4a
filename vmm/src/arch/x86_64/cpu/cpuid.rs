//! The CPUID table of each vCPU: the host's, with the plan's features and topology.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::CpuError;
use super::host::HostCpu;
use super::hyperv::Offered;
use super::hypervisor;
use super::policy;
use super::topology::{Topology, bits_for};
use crate::plan::{CpuPlan, HypervisorPlan};

/// CPUID leaves with topology (Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E).
mod leaf {
    pub const BASIC_MAX: u32 = 0x0;
    pub const FEATURES: u32 = 0x1;
    pub const CACHES: u32 = 0x4;
    pub const TOPOLOGY: u32 = 0xb;
    pub const TOPOLOGY_V2: u32 = 0x1f;
    pub const AMD_SIZES: u32 = 0x8000_0008;
    pub const AMD_CACHES: u32 = 0x8000_001d;
    pub const AMD_TOPOLOGY: u32 = 0x8000_001e;
}

/// The table shared by all vCPUs: host CPUID, features applied, leaves for topology present.
pub struct CpuidTemplate {
    cpuid: CpuId,
    topology: Topology,
}

impl CpuidTemplate {
    /// Applies the plan to what KVM supports.
    pub fn new(host: &HostCpu, plan: &CpuPlan) -> Result<Self, CpuError> {
        let mut cpuid = host.table()?;
        policy::apply_all(&mut cpuid, plan)?;
        let max = cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == leaf::BASIC_MAX);
        let max = max.map_or(0, |entry| entry.eax);
        cpuid.retain(|entry| !matches!(entry.function, leaf::TOPOLOGY | leaf::TOPOLOGY_V2));
        for function in [leaf::TOPOLOGY, leaf::TOPOLOGY_V2] {
            for index in 0..3 {
                if function <= max {
                    let entry = kvm_cpuid_entry2 {
                        function,
                        index,
                        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                        ..Default::default()
                    };
                    cpuid.push(entry).map_err(|_| CpuError::Full)?;
                }
            }
        }
        Ok(Self {
            cpuid,
            topology: Topology::new(plan),
        })
    }

    /// Says of the hypervisor what the plan says, and what KVM has `offered` of Hyper-V's interface.
    pub(super) fn set_hypervisor(
        &mut self,
        plan: &HypervisorPlan,
        offered: Option<&Offered>,
    ) -> Result<(), CpuError> {
        hypervisor::apply(&mut self.cpuid, plan, offered)
    }

    /// The table of vCPU number `vcpu`.
    pub fn for_vcpu(&self, vcpu: u32) -> CpuId {
        let mut cpuid = self.cpuid.clone();
        let apic_id = u32::from(self.topology.apic_id(vcpu));
        for entry in cpuid.as_mut_slice() {
            self.specialize(entry, apic_id);
        }
        cpuid
    }

    fn specialize(&self, entry: &mut kvm_cpuid_entry2, apic_id: u32) {
        /// Bits of a cache leaf's EAX that are zero when there is no such cache.
        const CACHE_TYPE: u32 = 0x1f;
        let topology = self.topology;
        match entry.function {
            leaf::FEATURES => {
                const HYPERTHREADING: u32 = 1 << 28;
                const HYPERVISOR: u32 = 1 << 31;
                let ids_per_package = 1_u32 << topology.package_bits();
                set_bits(&mut entry.ebx, 16, 8, ids_per_package);
                set_bits(&mut entry.ebx, 24, 8, apic_id);
                entry.ecx |= HYPERVISOR;
                if topology.per_package() > 1 {
                    entry.edx |= HYPERTHREADING;
                } else {
                    entry.edx &= !HYPERTHREADING;
                }
            }
            leaf::CACHES if entry.eax & CACHE_TYPE != 0 => {
                let sharers = self.cache_sharers(entry.eax);
                set_bits(&mut entry.eax, 14, 12, sharers - 1);
                let core_ids = 1_u32 << bits_for(topology.cores);
                set_bits(&mut entry.eax, 26, 6, core_ids - 1);
            }
            leaf::AMD_CACHES if entry.eax & CACHE_TYPE != 0 => {
                let sharers = self.cache_sharers(entry.eax);
                set_bits(&mut entry.eax, 14, 12, sharers - 1);
            }
            leaf::TOPOLOGY | leaf::TOPOLOGY_V2 => self.topology_level(entry, apic_id),
            leaf::AMD_SIZES => {
                set_bits(&mut entry.ecx, 0, 8, topology.per_package() - 1);
                set_bits(&mut entry.ecx, 12, 4, topology.package_bits());
            }
            leaf::AMD_TOPOLOGY => {
                entry.eax = apic_id;
                let core =
                    apic_id >> topology.thread_bits() & ((1 << bits_for(topology.cores)) - 1);
                entry.ebx = (topology.threads - 1) << 8 | core;
                entry.ecx = apic_id >> topology.package_bits();
            }
            _ => {}
        }
    }

    /// APIC ids that share the cache described by `eax` of leaf 4: a core's for the levels below
    /// 3, a package's for the others.
    fn cache_sharers(&self, eax: u32) -> u32 {
        let level = eax >> 5 & 0x7;
        if level < 3 {
            1 << self.topology.thread_bits()
        } else {
            1 << self.topology.package_bits()
        }
    }

    fn topology_level(&self, entry: &mut kvm_cpuid_entry2, apic_id: u32) {
        const THREAD: u32 = 1;
        const CORE: u32 = 2;
        let (shift, count, kind) = match entry.index {
            0 => (self.topology.thread_bits(), self.topology.threads, THREAD),
            1 => (
                self.topology.package_bits(),
                self.topology.per_package(),
                CORE,
            ),
            _ => (0, 0, 0),
        };
        entry.eax = shift;
        entry.ebx = count;
        entry.ecx = entry.index & 0xff | kind << 8;
        entry.edx = apic_id;
    }
}

fn set_bits(word: &mut u32, shift: u32, width: u32, value: u32) {
    let mask = ((1_u32 << width) - 1) << shift;
    *word = (*word & !mask) | (value << shift & mask);
}

#[cfg(test)]
mod tests {
    use super::super::testing::{entry, host, plan};
    use super::*;

    #[test]
    fn leaves_show_the_topology() {
        let template = CpuidTemplate::new(&host(), &plan(2, 2, 2, &[])).expect("template");
        let cpuid = template.for_vcpu(5);
        assert_eq!(entry(&cpuid, 1, 0).ebx, 5 << 24 | 4 << 16);
        assert_eq!(entry(&cpuid, 1, 0).edx, 1 << 28);
        assert_eq!(entry(&cpuid, 4, 0).eax >> 14 & 0xfff, 1, "L1 is a core's");
        assert_eq!(
            entry(&cpuid, 4, 3).eax >> 14 & 0xfff,
            3,
            "L3 is a package's"
        );
        assert_eq!(entry(&cpuid, 4, 3).eax >> 26, 1, "two core ids a package");
        for leaf in [0xb, 0x1f] {
            let level = entry(&cpuid, leaf, 0);
            assert_eq!(
                (level.eax, level.ebx, level.ecx, level.edx),
                (1, 2, 0x100, 5)
            );
            let level = entry(&cpuid, leaf, 1);
            assert_eq!(
                (level.eax, level.ebx, level.ecx, level.edx),
                (2, 4, 0x201, 5)
            );
            assert_eq!(entry(&cpuid, leaf, 2).ebx, 0);
        }
        assert_eq!(entry(&cpuid, 0x8000_0008, 0).ecx, 3 | 2 << 12);
        let amd = entry(&cpuid, 0x8000_001e, 0);
        assert_eq!((amd.eax, amd.ebx, amd.ecx), (5, 1 << 8, 1));
    }

    #[test]
    fn one_vcpu_has_no_siblings() {
        let template = CpuidTemplate::new(&host(), &plan(1, 1, 1, &[])).expect("template");
        let cpuid = template.for_vcpu(0);
        assert_eq!(entry(&cpuid, 1, 0).edx & 1 << 28, 0);
        assert_eq!(entry(&cpuid, 0xb, 0).ebx, 1);
        assert_eq!(entry(&cpuid, 4, 0).eax >> 14, 0);
    }
}
