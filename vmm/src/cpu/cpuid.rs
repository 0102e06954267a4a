//! The CPUID table of each vCPU: the host's, with the plan's features and topology.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::features::{self, FeatureBit, Register};
use super::probe::{Level, Probe, ProbeError};
use crate::plan::{CpuFeature, CpuPlan, FeaturePolicy};

/// CPUID cannot be made as the plan says.
#[derive(Debug, Error)]
pub enum CpuidError {
    /// Nobody knows a feature of this name.
    #[error("CPU feature {name:?} is not known")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The host lacks a required feature.
    #[error("CPU feature {name:?} is required, but the host or its KVM does not offer it")]
    Missing {
        /// The name.
        name: String,
    },
    /// The host has a forbidden feature.
    #[error("CPU feature {name:?} is forbidden, but the host offers it")]
    Forbidden {
        /// The name.
        name: String,
    },
    /// The host does not let a feature be changed.
    #[error(
        "CPU feature {name:?} cannot have policy {policy}: this host's KVM shows guests the \
         host's own bit, which is {shown}"
    )]
    Unchangeable {
        /// The name.
        name: String,
        /// The policy asked for.
        policy: FeaturePolicy,
        /// What guests see.
        shown: &'static str,
    },
    /// The table has no room for another leaf.
    #[error("The CPUID table has more than {KVM_MAX_CPUID_ENTRIES} entries")]
    Full,
}

impl CpuidError {
    /// Whether the fault is in the features asked for.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Unknown { .. }
                | Self::Missing { .. }
                | Self::Forbidden { .. }
                | Self::Unchangeable { .. }
        )
    }
}

/// A CPUID leaf as launcher and vm process pass it on: function, index, flags of KVM, then EAX, EBX,
/// ECX, EDX. As plain numbers, because the table is most of the message that starts a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf([u32; 7]);

impl From<&kvm_cpuid_entry2> for CpuidLeaf {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        let kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..
        } = *entry;
        Self([function, index, flags, eax, ebx, ecx, edx])
    }
}

impl From<&CpuidLeaf> for kvm_cpuid_entry2 {
    fn from(leaf: &CpuidLeaf) -> Self {
        let [function, index, flags, eax, ebx, ecx, edx] = leaf.0;
        Self {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }
}

/// How APIC ids are made of thread, core and socket numbers (Intel SDM volume 3A, 9.9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    threads: u32,
    cores: u32,
    sockets: u32,
}

impl Topology {
    /// The plan's topology.
    pub fn new(plan: &CpuPlan) -> Self {
        Self {
            threads: plan.threads,
            cores: plan.cores,
            sockets: plan.sockets,
        }
    }

    fn thread_bits(self) -> u32 {
        bits_for(self.threads)
    }

    fn package_bits(self) -> u32 {
        self.thread_bits() + bits_for(self.cores)
    }

    fn per_package(self) -> u32 {
        self.threads * self.cores
    }

    /// APIC id of vCPU number `vcpu`. With at most 64 vCPUs it is below 255.
    pub fn apic_id(self, vcpu: u32) -> u8 {
        let thread = vcpu % self.threads;
        let core = vcpu / self.threads % self.cores;
        let socket = vcpu / self.per_package();
        let id = socket << self.package_bits() | core << self.thread_bits() | thread;
        u8::try_from(id).unwrap_or(u8::MAX)
    }

    /// APIC ids of all vCPUs in order.
    pub fn apic_ids(self) -> Vec<u8> {
        (0..self.sockets * self.per_package())
            .map(|vcpu| self.apic_id(vcpu))
            .collect()
    }
}

/// Bits that tell `count` numbers apart.
fn bits_for(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

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
    /// Checks from inside a guest that the features which the plan changes are changed: a KVM that
    /// runs guests without hardware virtualization may show them the host's bits all the same.
    pub fn verify(&self, kvm: &Kvm, plan: &CpuPlan) -> Result<(), CpuidError> {
        let mut changed = plan
            .features
            .iter()
            .filter_map(|feature| Some((feature, features::find(&feature.name)?, wanted(feature)?)))
            .peekable();
        if changed.peek().is_none() {
            return Ok(());
        }
        let mut probes = Vec::new();
        for level in [Level::Kernel, Level::User] {
            match Probe::new(kvm, &self.for_vcpu(0), level) {
                Ok(probe) => probes.push(probe),
                Err(error) => return unverified(&error),
            }
        }
        for (feature, bit, wanted) in changed {
            for probe in &mut probes {
                match probe.cpuid(bit.leaf, bit.subleaf) {
                    Ok(words) if bit_of(words, bit) != wanted => {
                        return Err(CpuidError::Unchangeable {
                            name: feature.name.clone(),
                            policy: feature.policy,
                            shown: if wanted { "clear" } else { "set" },
                        });
                    }
                    Ok(_) => {}
                    Err(error) => return unverified(&error),
                }
            }
        }
        Ok(())
    }

    /// Applies the plan to what KVM supports ([`kvm::supported_cpuid`](crate::kvm::supported_cpuid)).
    pub fn new(supported: &[CpuidLeaf], plan: &CpuPlan) -> Result<Self, CpuidError> {
        let entries: Vec<_> = supported.iter().map(kvm_cpuid_entry2::from).collect();
        let mut cpuid = CpuId::from_entries(&entries).map_err(|_| CpuidError::Full)?;
        hide_invariant_tsc(&mut cpuid, plan)?;
        for feature in &plan.features {
            apply(&mut cpuid, feature)?;
        }
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
                    cpuid.push(entry).map_err(|_| CpuidError::Full)?;
                }
            }
        }
        Ok(Self {
            cpuid,
            topology: Topology::new(plan),
        })
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

/// The bit that a policy makes, if it makes one.
fn wanted(feature: &CpuFeature) -> Option<bool> {
    match feature.policy {
        FeaturePolicy::Disable => Some(false),
        FeaturePolicy::Force => Some(true),
        FeaturePolicy::Require | FeaturePolicy::Optional | FeaturePolicy::Forbid => None,
    }
}

fn bit_of([eax, ebx, ecx, edx]: [u32; 4], bit: FeatureBit) -> bool {
    let word = match bit.register {
        Register::Eax => eax,
        Register::Ebx => ebx,
        Register::Ecx => ecx,
        Register::Edx => edx,
    };
    word >> bit.bit & 1 == 1
}

/// Not to know is no reason not to run.
fn unverified(error: &ProbeError) -> Result<(), CpuidError> {
    let error = error as &dyn std::error::Error;
    tracing::warn!(error, "cannot verify the CPU features that the guest sees");
    Ok(())
}

/// A guest that knows its TSC to be invariant takes it for its clock and does not ask KVM for the
/// time, which stops in a pause. So the bit is hidden unless the VMI names it, as libvirt does.
fn hide_invariant_tsc(cpuid: &mut CpuId, plan: &CpuPlan) -> Result<(), CpuidError> {
    const NAME: &str = "invtsc";
    if plan.features.iter().any(|feature| feature.name == NAME) {
        return Ok(());
    }
    features::find(NAME).map_or(Ok(()), |bit| set(cpuid, bit, false))
}

fn apply(cpuid: &mut CpuId, feature: &CpuFeature) -> Result<(), CpuidError> {
    let name = || feature.name.clone();
    let Some(bit) = features::find(&feature.name) else {
        return match feature.policy {
            FeaturePolicy::Optional | FeaturePolicy::Forbid => Ok(()),
            _ => Err(CpuidError::Unknown { name: name() }),
        };
    };
    match (feature.policy, is_set(cpuid, bit)) {
        (FeaturePolicy::Require, false) => Err(CpuidError::Missing { name: name() }),
        (FeaturePolicy::Forbid, true) => Err(CpuidError::Forbidden { name: name() }),
        (FeaturePolicy::Disable, _) => set(cpuid, bit, false),
        (FeaturePolicy::Force, _) => set(cpuid, bit, true),
        _ => Ok(()),
    }
}

fn register(entry: &mut kvm_cpuid_entry2, register: Register) -> &mut u32 {
    match register {
        Register::Eax => &mut entry.eax,
        Register::Ebx => &mut entry.ebx,
        Register::Ecx => &mut entry.ecx,
        Register::Edx => &mut entry.edx,
    }
}

fn is_set(cpuid: &mut CpuId, bit: FeatureBit) -> bool {
    find(cpuid, bit).is_some_and(|entry| *register(entry, bit.register) >> bit.bit & 1 == 1)
}

fn find(cpuid: &mut CpuId, bit: FeatureBit) -> Option<&mut kvm_cpuid_entry2> {
    cpuid
        .as_mut_slice()
        .iter_mut()
        .find(|entry| entry.function == bit.leaf && entry.index == bit.subleaf)
}

fn set(cpuid: &mut CpuId, bit: FeatureBit, on: bool) -> Result<(), CpuidError> {
    if find(cpuid, bit).is_none() {
        if !on {
            return Ok(());
        }
        let entry = kvm_cpuid_entry2 {
            function: bit.leaf,
            index: bit.subleaf,
            flags: if bit.subleaf > 0 {
                KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            } else {
                0
            },
            ..Default::default()
        };
        cpuid.push(entry).map_err(|_| CpuidError::Full)?;
    }
    if let Some(entry) = find(cpuid, bit) {
        let word = register(entry, bit.register);
        *word = *word & !(1 << bit.bit) | u32::from(on) << bit.bit;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(sockets: u32, cores: u32, threads: u32, features: &[(&str, FeaturePolicy)]) -> CpuPlan {
        CpuPlan {
            sockets,
            cores,
            threads,
            features: features
                .iter()
                .map(|(name, policy)| CpuFeature {
                    name: (*name).into(),
                    policy: *policy,
                })
                .collect(),
        }
    }

    fn host() -> Vec<CpuidLeaf> {
        let entry =
            |function, index, eax, ecx, edx| CpuidLeaf([function, index, 0, eax, 0, ecx, edx]);
        vec![
            entry(0, 0, 0x1f, 0, 0),
            entry(1, 0, 0, 1 << 13, 0),
            entry(4, 0, 1 | 1 << 5, 0, 0),
            entry(4, 3, 3 | 3 << 5, 0, 0),
            entry(0xb, 0, 9, 9, 9),
            entry(0x8000_0008, 0, 0, 0, 0),
            entry(0x8000_001e, 0, 0, 0, 0),
        ]
    }

    fn entry(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .expect("leaf")
    }

    #[test]
    fn apic_ids_leave_gaps_for_counts_that_are_no_powers_of_two() {
        let ids = Topology::new(&plan(2, 3, 2, &[])).apic_ids();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        for (sockets, cores, threads) in [(64, 1, 1), (21, 3, 1), (7, 3, 3), (4, 5, 3), (1, 1, 64)]
        {
            let ids = Topology::new(&plan(sockets, cores, threads, &[])).apic_ids();
            assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");
            assert!(ids.iter().all(|id| *id < 255));
        }
    }

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

    #[test]
    fn policies() {
        use FeaturePolicy::{Disable, Forbid, Force, Optional, Require};
        let ecx = |features: &[(&str, FeaturePolicy)]| {
            CpuidTemplate::new(&host(), &plan(1, 1, 1, features))
                .map(|template| entry(&template.cpuid, 1, 0).ecx)
        };
        assert_eq!(ecx(&[("cx16", Require)]).expect("host has it"), 1 << 13);
        assert_eq!(ecx(&[("cx16", Disable)]).expect("disabled"), 0);
        assert_eq!(
            ecx(&[("cx16", Optional), ("avx", Optional)]).expect("as is"),
            1 << 13
        );
        assert_eq!(ecx(&[("avx", Force)]).expect("forced"), 1 << 13 | 1 << 28);
        assert!(matches!(
            ecx(&[("avx", Require)]),
            Err(CpuidError::Missing { .. })
        ));
        assert!(matches!(
            ecx(&[("cx16", Forbid)]),
            Err(CpuidError::Forbidden { .. })
        ));
        assert!(ecx(&[("avx", Forbid)]).is_ok());
        assert!(matches!(
            ecx(&[("nonsense", Require)]),
            Err(CpuidError::Unknown { .. })
        ));
        assert!(matches!(
            ecx(&[("nonsense", Disable)]),
            Err(CpuidError::Unknown { .. })
        ));
        assert!(ecx(&[("nonsense", Optional)]).is_ok());
        let forced = CpuidTemplate::new(&host(), &plan(1, 1, 1, &[("invtsc", Force)]));
        assert_eq!(
            entry(&forced.expect("new leaf").cpuid, 0x8000_0007, 0).edx,
            1 << 8
        );
    }
}
