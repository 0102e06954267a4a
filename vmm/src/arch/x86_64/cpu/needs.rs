//! What CPU features need of each other. KVM offers what the host has bit by bit, and a VMI may
//! disable any: a feature whose need is absent goes, too, since guests test for the one bit only.
//!
//! The needs are those of the Intel SDM (volume 1, chapters 13 to 15 and 18; volume 2, CPUID) and the
//! AMD APM (volume 3, appendices D and E): the state that an instruction works on must be there, and
//! what saves it; an extension needs what it extends.

use kvm_bindings::CpuId;

use super::CpuError;
use super::bits::{is_set, set};
use super::features;
use crate::plan::{CpuPlan, FeaturePolicy};

/// `(need, features that cannot be without it)`.
#[rustfmt::skip]
const NEEDS: &[(&str, &[&str])] = &[
    ("fpu", &["mmx", "fxsr"]),
    ("mmx", &["mmxext", "3dnow"]),
    ("3dnow", &["3dnowext"]),
    ("fxsr", &["fxsr_opt", "sse"]),
    ("sse", &["sse2", "misalignsse", "avx"]),
    ("sse2", &["sse3", "aes", "pclmulqdq", "sha-ni", "gfni"]),
    ("sse3", &["ssse3", "sse4a"]),
    ("ssse3", &["sse4.1"]),
    ("sse4.1", &["sse4.2"]),
    ("xsave", &["xsaveopt", "xsavec", "xgetbv1", "xsaves", "xsaveerptr", "avx", "pku", "mpx", "lwp"]),
    ("xsavec", &["xsaves"]),
    ("xsaves", &["xfd", "shstk"]),
    ("xgetbv1", &["xfd"]),
    ("xfd", &["amx-tile"]),
    ("amx-tile", &["amx-bf16", "amx-int8", "amx-fp16"]),
    ("aes", &["vaes"]),
    ("pclmulqdq", &["vpclmulqdq"]),
    ("avx", &["avx2", "fma", "f16c", "vaes", "vpclmulqdq", "xop", "fma4"]),
    ("avx2", &["avx512f", "avx-vnni", "avx-ifma", "avx-vnni-int8", "avx-ne-convert"]),
    ("avx512f", &[
        "avx512dq", "avx512ifma", "avx512pf", "avx512er", "avx512cd", "avx512bw", "avx512vl",
        "avx512vnni", "avx512-vpopcntdq", "avx512-4vnniw", "avx512-4fmaps",
        "avx512-vp2intersect", "avx512-bf16",
    ]),
    ("avx512bw", &["avx512vbmi", "avx512vbmi2", "avx512bitalg", "avx512-fp16"]),
    ("pae", &["nx", "lm"]),
    ("lm", &["lahf_lm", "pdpe1gb", "la57", "lam"]),
    ("apic", &["x2apic", "extapic", "tsc-deadline"]),
    ("tsc", &["rdtscp", "tsc_adjust", "tsc-deadline"]),
    ("ds", &["dtes64", "ds_cpl"]),
    ("rtm", &["tsx-ldtrk"]),
    ("kvm-asyncpf", &["kvm-asyncpf-int"]),
];

/// Leaf of the state that XSAVE knows.
const XSAVE_LEAF: u32 = 0xd;

/// Takes away features without what they need, and what needs those. Refused if the plan insists on
/// one of them.
pub(super) fn settle(cpuid: &mut CpuId, plan: &CpuPlan) -> Result<(), CpuError> {
    while take_away(cpuid, plan)? {}
    if features::find("xsave").is_some_and(|bit| !is_set(cpuid, bit)) {
        cpuid.retain(|entry| entry.function != XSAVE_LEAF);
    }
    Ok(())
}

/// One pass; whether anything went.
fn take_away(cpuid: &mut CpuId, plan: &CpuPlan) -> Result<bool, CpuError> {
    let mut went = false;
    for (need, dependents) in NEEDS {
        if features::find(need).is_some_and(|bit| is_set(cpuid, bit)) {
            continue;
        }
        for name in *dependents {
            let Some(bit) = features::find(name).filter(|bit| is_set(cpuid, *bit)) else {
                continue;
            };
            if insists_on(plan, name) {
                return Err(CpuError::Needs {
                    name: (*name).to_owned(),
                    need: (*need).to_owned(),
                });
            }
            tracing::debug!(name, need, "CPU feature without what it needs is hidden");
            set(cpuid, bit, false)?;
            went = true;
        }
    }
    Ok(went)
}

/// Whether the plan fails without the feature, by whichever of its names.
fn insists_on(plan: &CpuPlan, name: &str) -> bool {
    plan.features.iter().any(|feature| {
        matches!(
            feature.policy,
            FeaturePolicy::Require | FeaturePolicy::Force
        ) && features::find(&feature.name) == features::find(name)
    })
}

#[cfg(test)]
mod tests {
    use super::super::host::{CpuidLeaf, HostCpu};
    use super::super::testing::{entry, plan};
    use super::*;
    use FeaturePolicy::{Disable, Force, Optional, Require};

    const SSE: u32 = 1 << 24 | 1 << 25 | 1 << 26 | 1;
    const XSAVE: u32 = 1 << 26;
    const AVX: u32 = 1 << 28;
    const FMA: u32 = 1 << 12;
    const AVX2: u32 = 1 << 5;
    const AVX512F: u32 = 1 << 16;
    const BMI1: u32 = 1 << 3;
    const VAES: u32 = 1 << 9;

    /// AVX and what is built on it, with or without XSAVE.
    fn host(xsave: bool) -> HostCpu {
        let xsave = if xsave { XSAVE } else { 0 };
        HostCpu(vec![
            CpuidLeaf([0, 0, 0, 0xd, 0, 0, 0]),
            CpuidLeaf([1, 0, 0, 0, 0, FMA | AVX | 1 << 25 | xsave, SSE]),
            CpuidLeaf([7, 0, 1, 0, AVX2 | AVX512F | BMI1, VAES, 0]),
            CpuidLeaf([0xd, 0, 1, 7, 0, 0, 0]),
            CpuidLeaf([0xd, 1, 1, 1, 0, 0, 0]),
        ])
    }

    fn settled(host: &HostCpu, features: &[(&str, FeaturePolicy)]) -> Result<CpuId, CpuError> {
        let mut cpuid = host.table()?;
        super::super::policy::apply_all(&mut cpuid, &plan(1, 1, 1, features))?;
        Ok(cpuid)
    }

    fn refusal(host: &HostCpu, features: &[(&str, FeaturePolicy)]) -> String {
        settled(host, features).expect_err("refused").to_string()
    }

    #[test]
    fn a_whole_processor_stays_whole() {
        let cpuid = settled(&host(true), &[]).expect("table");
        assert_eq!(entry(&cpuid, 1, 0).ecx, FMA | AVX | 1 << 25 | XSAVE);
        assert_eq!(entry(&cpuid, 7, 0).ebx, AVX2 | AVX512F | BMI1);
        assert_eq!(entry(&cpuid, 7, 0).ecx, VAES);
        assert_eq!(entry(&cpuid, 0xd, 0).eax, 7);
    }

    #[test]
    fn without_xsave_all_of_avx_goes_and_nothing_else() {
        let disabled = settled(&host(true), &[("xsave", Disable)]).expect("table");
        let absent = settled(&host(false), &[("avx", Optional)]).expect("table");
        for cpuid in [disabled, absent] {
            assert_eq!(entry(&cpuid, 1, 0).ecx, 1 << 25, "AES stays");
            assert_eq!(entry(&cpuid, 7, 0).ebx, BMI1);
            assert_eq!(entry(&cpuid, 7, 0).ecx, 0);
            let states = |entry: &&kvm_bindings::kvm_cpuid_entry2| entry.function == XSAVE_LEAF;
            assert_eq!(cpuid.as_slice().iter().filter(states).count(), 0);
        }
    }

    #[test]
    fn who_insists_is_told_both_names() {
        for policy in [Require, Force] {
            let text = refusal(&host(false), &[("avx", policy)]);
            assert!(
                text.contains("\"avx\"") && text.contains("\"xsave\""),
                "{text}"
            );
        }
        let text = refusal(&host(true), &[("xsave", Disable), ("avx2", Require)]);
        assert!(
            text.contains("\"avx2\"") && text.contains("\"avx\""),
            "{text}"
        );
        let text = refusal(&host(false), &[("vaes", Require), ("aes", Disable)]);
        assert!(
            text.contains("\"vaes\"") && text.contains("\"aes\""),
            "{text}"
        );
    }

    #[test]
    fn every_name_of_the_table_is_a_feature_and_needs_are_no_circle() {
        for (need, dependents) in NEEDS {
            for name in [need].into_iter().chain(*dependents) {
                assert!(features::find(name).is_some(), "{name}");
            }
        }
        // A processor with all bits keeps them; one with no need keeps no dependent.
        let all = HostCpu(vec![
            CpuidLeaf([1, 0, 0, 0, 0, u32::MAX, u32::MAX]),
            CpuidLeaf([7, 0, 1, 0, u32::MAX, u32::MAX, u32::MAX]),
            CpuidLeaf([7, 1, 1, u32::MAX, 0, 0, u32::MAX]),
            CpuidLeaf([0xd, 1, 1, u32::MAX, 0, 0, 0]),
            CpuidLeaf([0x8000_0001, 0, 0, 0, 0, u32::MAX, u32::MAX]),
            CpuidLeaf([0x8000_0007, 0, 0, 0, 0, 0, u32::MAX]),
            CpuidLeaf([0x8000_0008, 0, 0, 0, u32::MAX, 0, 0]),
            CpuidLeaf([0x4000_0001, 0, 0, u32::MAX, 0, 0, 0]),
        ]);
        let mut table = all.table().expect("table");
        let before = table.clone();
        settle(&mut table, &plan(1, 1, 1, &[])).expect("settled");
        assert_eq!(table.as_slice(), before.as_slice());
        for (need, dependents) in NEEDS {
            let mut table = all.table().expect("table");
            let bit = features::find(need).expect("known");
            set(&mut table, bit, false).expect("cleared");
            settle(&mut table, &plan(1, 1, 1, &[])).expect("settled");
            for name in *dependents {
                let bit = features::find(name).expect("known");
                assert!(!is_set(&mut table, bit), "{name} without {need}");
            }
        }
    }
}
