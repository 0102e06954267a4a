//! A small host and plans for it.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::host::{CpuidLeaf, HostCpu};
use crate::plan::{CpuFeature, CpuPlan, FeaturePolicy, HypervisorPlan};

pub(super) fn plan(
    sockets: u32,
    cores: u32,
    threads: u32,
    features: &[(&str, FeaturePolicy)],
) -> CpuPlan {
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
        model: None,
        hypervisor: HypervisorPlan::default(),
    }
}

pub(super) fn host() -> HostCpu {
    let entry = |function, index, eax, ecx, edx| CpuidLeaf([function, index, 0, eax, 0, ecx, edx]);
    HostCpu(vec![
        entry(0, 0, 0x1f, 0, 0),
        entry(1, 0, 0, 1 << 13, 0),
        entry(4, 0, 1 | 1 << 5, 0, 0),
        entry(4, 3, 3 | 3 << 5, 0, 0),
        entry(0xb, 0, 9, 9, 9),
        entry(0x8000_0008, 0, 0, 0, 0),
        entry(0x8000_001e, 0, 0, 0, 0),
    ])
}

pub(super) fn entry(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
    *cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == function && entry.index == index)
        .expect("leaf")
}
