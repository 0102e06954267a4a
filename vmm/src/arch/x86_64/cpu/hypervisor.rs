//! What CPUID says of the hypervisor: that it is KVM, or not, and that its clock is there, or not.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::CpuError;
use super::hyperv;
use super::hyperv::Offered;
use crate::plan::HypervisorPlan;

/// KVM's leaves (`Documentation/virt/kvm/x86/cpuid.rst`).
const KVM: u32 = 0x4000_0000;
/// Its features.
const KVM_FEATURES: u32 = KVM + 1;
/// Leaves of one hypervisor.
const LEAVES: u32 = 0x100;
/// Features of KVM that are its clock: `KVM_FEATURE_CLOCKSOURCE`, `…_CLOCKSOURCE2`, `…_CLOCKSOURCE_STABLE_BIT`.
const CLOCK: u32 = 1 << 0 | 1 << 3 | 1 << 24;

/// Frequency of the time stamp counter (Intel SDM volume 2A, CPUID).
const TSC: u32 = 0x15;
/// Frequency at which KVM counts down a guest's APIC timer, Hz.
const APIC_HZ: u32 = 1_000_000_000;
const INTEL: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];

/// Changes a table whose features are settled as the plan says; `offered` is what KVM has of Hyper-V's interface.
pub(super) fn apply(
    cpuid: &mut CpuId,
    plan: &HypervisorPlan,
    offered: Option<&Offered>,
) -> Result<(), CpuError> {
    for entry in cpuid.as_mut_slice() {
        if plan.kvmclock_hidden && entry.function == KVM_FEATURES {
            entry.eax &= !CLOCK;
        }
    }
    if plan.kvm_hidden {
        cpuid.retain(|entry| !is_of_kvm(entry));
    }
    match (&plan.hyperv, offered) {
        (Some(hyperv), Some(offered)) => {
            make_way(cpuid);
            hyperv::add(cpuid, hyperv, offered)
        }
        _ => Ok(()),
    }
}

fn is_of_kvm(entry: &kvm_cpuid_entry2) -> bool {
    (KVM..KVM + LEAVES).contains(&entry.function)
}

/// Guests look for Hyper-V at the first place only, and for KVM in steps of 256.
fn make_way(cpuid: &mut CpuId) {
    for entry in cpuid.as_mut_slice() {
        if is_of_kvm(entry) {
            entry.function += LEAVES;
            if entry.function == KVM + LEAVES {
                entry.eax += LEAVES;
            }
        }
    }
}

/// A guest that has no clock of KVM's, and no timer that its counter could be compared with, is told the counter's
/// frequency. Guests look for it on Intel's processors only.
pub(super) fn tell_frequency(cpuid: &mut CpuId, plan: &HypervisorPlan, tsc_khz: u32) {
    if !plan.hides_clock() {
        return;
    }
    let first = cpuid.as_slice().iter().find(|entry| entry.function == 0);
    let knows = first.is_some_and(|entry| {
        entry.eax >= TSC && [entry.ebx, entry.edx, entry.ecx] == INTEL && tsc_khz > 0
    });
    let mut leaves = cpuid.as_mut_slice().iter_mut();
    if let Some(leaf) = leaves.find(|entry| entry.function == TSC && knows) {
        let (numerator, denominator) = ratio(tsc_khz);
        (leaf.eax, leaf.ebx, leaf.ecx) = (denominator, numerator, APIC_HZ);
    }
}

/// The counter's frequency over the APIC timer's, as a fraction whose numerator Linux can multiply with the
/// latter's kilohertz in 32 bits.
fn ratio(tsc_khz: u32) -> (u32, u32) {
    const APIC_KHZ: u64 = APIC_HZ as u64 / 1000;
    const MAX: u64 = u32::MAX as u64 / APIC_KHZ;
    let khz = u64::from(tsc_khz);
    let numerator = |denominator: u64| (khz * denominator + APIC_KHZ / 2) / APIC_KHZ;
    let error = |denominator: &u64| {
        let shown = numerator(*denominator) * APIC_KHZ / denominator;
        shown.abs_diff(khz)
    };
    let denominators = (1..=MAX).filter(|denominator| (1..=MAX).contains(&numerator(*denominator)));
    let best = denominators.min_by_key(error).unwrap_or(1);
    // Both are at most MAX.
    (numerator(best) as u32, best as u32)
}

#[cfg(test)]
mod tests {
    use super::super::host::{CpuidLeaf, HostCpu};
    use super::super::testing::entry;
    use super::*;
    use crate::plan::{Enlightenment, HypervPlan};

    const KVM_NAME: u32 = 0x4b4d_564b;

    fn table() -> CpuId {
        let [ebx, edx, ecx] = INTEL;
        let host = HostCpu(vec![
            CpuidLeaf([0, 0, 0, 0x16, ebx, ecx, edx]),
            CpuidLeaf([TSC, 0, 0, 0, 0, 0, 0]),
            CpuidLeaf([KVM, 0, 0, KVM_FEATURES, KVM_NAME, 0, 0]),
            CpuidLeaf([KVM_FEATURES, 0, 0, 0x0100_7efb, 0, 0, 0]),
        ]);
        host.table().expect("table")
    }

    fn leaves(cpuid: &CpuId) -> Vec<u32> {
        let entries = cpuid.as_slice().iter();
        entries.map(|entry| entry.function).collect()
    }

    #[test]
    fn nothing_says_that_it_is_kvm() {
        let mut cpuid = table();
        let plan = HypervisorPlan {
            kvm_hidden: true,
            ..Default::default()
        };
        apply(&mut cpuid, &plan, None).expect("applied");
        assert_eq!(leaves(&cpuid), [0, TSC]);
        tell_frequency(&mut cpuid, &plan, 2_500_000);
        let leaf = entry(&cpuid, TSC, 0);
        assert_eq!((leaf.eax, leaf.ebx, leaf.ecx), (2, 5, APIC_HZ));
    }

    #[test]
    fn kvms_clock_goes_alone() {
        let mut cpuid = table();
        let plan = HypervisorPlan {
            kvmclock_hidden: true,
            ..Default::default()
        };
        apply(&mut cpuid, &plan, None).expect("applied");
        assert_eq!(entry(&cpuid, KVM, 0).ebx, KVM_NAME);
        assert_eq!(entry(&cpuid, KVM_FEATURES, 0).eax, 0x7ef2);
    }

    #[test]
    fn kvm_makes_way_for_hyper_v_where_that_is_offered() {
        let plan = HypervisorPlan {
            hyperv: Some(HypervPlan {
                enlightenments: vec![Enlightenment::Relaxed],
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut cpuid = table();
        apply(&mut cpuid, &plan, None).expect("applied");
        assert_eq!(cpuid.as_slice(), table().as_slice(), "not offered");
        apply(&mut cpuid, &plan, Some(&hyperv::tests::offered())).expect("applied");
        assert_eq!(entry(&cpuid, KVM + LEAVES, 0).eax, KVM_FEATURES + LEAVES);
        assert_eq!(entry(&cpuid, KVM_FEATURES + LEAVES, 0).eax, 0x0100_7efb);
        assert_eq!(entry(&cpuid, KVM, 0).ebx, u32::from_le_bytes(*b"Micr"));
    }

    #[test]
    fn frequencies_are_told_as_near_as_clocks_are_corrected() {
        for khz in [800_000, 2_096_074, 2_499_998, 3_000_317, 4_200_000] {
            let (numerator, denominator) = ratio(khz);
            // As Linux computes it (native_calibrate_tsc), in 32 bits.
            let shown = (APIC_HZ / 1000).checked_mul(numerator).expect("fits") / denominator;
            // NTP corrects up to 500 parts in a million.
            assert!(shown.abs_diff(khz) <= khz / 5000, "{khz}: {shown}");
        }
    }

    #[test]
    fn others_are_told_no_frequency() {
        let mut cpuid = table();
        tell_frequency(&mut cpuid, &HypervisorPlan::default(), 2_500_000);
        assert_eq!(cpuid.as_slice(), table().as_slice());
    }
}
