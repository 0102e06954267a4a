//! Processors by the names that libvirt has for them, as features: a guest of the model has those and no others.
//!
//! The features are what the makers document for the generation and what QEMU and libvirt show guests of it. What the
//! hypervisor brings in any case, what mitigates faults of the host's processor, and what no program decides by is left
//! as it is; so are family, model and name.

use super::CpuError;
use super::features;
use super::host::HostCpu;
use crate::plan::{CpuFeature, CpuPlan, FeaturePolicy};

/// A model: name, maker, the model it extends, what it has besides, and what it has not.
struct Model(
    &'static str,
    Option<&'static str>,
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const INTEL: Option<&str> = Some("Intel");
const AMD: Option<&str> = Some("AMD");
const TSX: &[&str] = &["hle", "rtm"];
const IBRS: &[&str] = &["spec-ctrl"];
const NOTHING: &[&str] = &[];

#[rustfmt::skip]
static MODELS: &[Model] = &[
    Model("kvm64", None, "", &[
        "apic", "clflush", "cmov", "cx16", "cx8", "de", "fpu", "fxsr", "lm", "mca", "mce", "mmx", "msr", "mtrr", "nx",
        "pae", "pat", "pge", "pni", "pse", "pse36", "sep", "sse", "sse2", "syscall", "tsc",
    ], NOTHING),
    Model("qemu64", None, "kvm64", &["lahf_lm"], NOTHING),
    Model("Conroe", INTEL, "kvm64", &["lahf_lm", "ssse3"], NOTHING),
    Model("Penryn", INTEL, "Conroe", &["sse4.1"], NOTHING),
    Model("Nehalem", INTEL, "Penryn", &["popcnt", "sse4.2"], NOTHING),
    Model("Nehalem-IBRS", INTEL, "Nehalem", IBRS, NOTHING),
    Model("Westmere", INTEL, "Nehalem", &["aes", "pclmuldq"], NOTHING),
    Model("Westmere-IBRS", INTEL, "Westmere", IBRS, NOTHING),
    Model("SandyBridge", INTEL, "Westmere", &["avx", "rdtscp", "xsave", "xsaveopt"], NOTHING),
    Model("SandyBridge-IBRS", INTEL, "SandyBridge", IBRS, NOTHING),
    Model("IvyBridge", INTEL, "SandyBridge", &["erms", "f16c", "fsgsbase", "rdrand", "smep"], NOTHING),
    Model("IvyBridge-IBRS", INTEL, "IvyBridge", IBRS, NOTHING),
    Model("Haswell-noTSX", INTEL, "IvyBridge", &[
        "abm", "avx2", "bmi1", "bmi2", "fma", "invpcid", "movbe", "pcid",
    ], NOTHING),
    Model("Haswell-noTSX-IBRS", INTEL, "Haswell-noTSX", IBRS, NOTHING),
    Model("Haswell", INTEL, "Haswell-noTSX", TSX, NOTHING),
    Model("Haswell-IBRS", INTEL, "Haswell", IBRS, NOTHING),
    Model("Broadwell", INTEL, "Haswell", &["3dnowprefetch", "adx", "rdseed", "smap"], NOTHING),
    Model("Broadwell-IBRS", INTEL, "Broadwell", IBRS, NOTHING),
    Model("Broadwell-noTSX", INTEL, "Broadwell", NOTHING, TSX),
    Model("Broadwell-noTSX-IBRS", INTEL, "Broadwell-noTSX", IBRS, NOTHING),
    Model("Skylake-Client", INTEL, "Broadwell", &["clflushopt", "xgetbv1", "xsavec"], NOTHING),
    Model("Skylake-Client-IBRS", INTEL, "Skylake-Client", IBRS, NOTHING),
    Model("Skylake-Client-noTSX-IBRS", INTEL, "Skylake-Client-IBRS", NOTHING, TSX),
    Model("Skylake-Server", INTEL, "Skylake-Client", &[
        "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl", "clwb", "pdpe1gb", "pku",
    ], NOTHING),
    Model("Skylake-Server-IBRS", INTEL, "Skylake-Server", IBRS, NOTHING),
    Model("Skylake-Server-noTSX-IBRS", INTEL, "Skylake-Server-IBRS", NOTHING, TSX),
    Model("Cascadelake-Server", INTEL, "Skylake-Server-IBRS", &["avx512vnni", "ssbd"], NOTHING),
    Model("Cascadelake-Server-noTSX", INTEL, "Cascadelake-Server", NOTHING, TSX),
    Model("Cooperlake", INTEL, "Cascadelake-Server", &["avx512-bf16", "stibp"], NOTHING),
    Model("Icelake-Server", INTEL, "Cascadelake-Server", &[
        "avx512-vpopcntdq", "avx512bitalg", "avx512vbmi", "avx512vbmi2", "gfni", "la57", "umip", "vaes", "vpclmulqdq",
        "wbnoinvd",
    ], NOTHING),
    Model("Icelake-Server-noTSX", INTEL, "Icelake-Server", NOTHING, TSX),
    Model("SapphireRapids", INTEL, "Icelake-Server", &[
        "amx-bf16", "amx-int8", "amx-tile", "avx-vnni", "avx512-bf16", "avx512-fp16", "avx512ifma", "fsrc", "fsrm", "fsrs",
        "fzrm", "rdpid", "serialize", "sha-ni", "tsx-ldtrk", "xfd", "xsaves",
    ], NOTHING),
    Model("Opteron_G1", AMD, "kvm64", NOTHING, &["cx16"]),
    Model("Opteron_G2", AMD, "Opteron_G1", &["cx16", "lahf_lm"], NOTHING),
    Model("Opteron_G3", AMD, "Opteron_G2", &["abm", "misalignsse", "popcnt", "sse4a"], NOTHING),
    Model("Opteron_G4", AMD, "Opteron_G3", &[
        "3dnowprefetch", "aes", "avx", "fma4", "pclmuldq", "pdpe1gb", "sse4.1", "sse4.2", "ssse3", "xop", "xsave",
    ], NOTHING),
    Model("Opteron_G5", AMD, "Opteron_G4", &["f16c", "fma", "tbm"], NOTHING),
    Model("EPYC", AMD, "kvm64", &[
        "3dnowprefetch", "abm", "adx", "aes", "avx", "avx2", "bmi1", "bmi2", "clflushopt", "f16c", "fma", "fsgsbase",
        "fxsr_opt", "lahf_lm", "misalignsse", "mmxext", "movbe", "osvw", "pclmuldq", "pdpe1gb", "popcnt", "rdrand",
        "rdseed", "rdtscp", "sha-ni", "smap", "smep", "sse4.1", "sse4.2", "sse4a", "ssse3", "xgetbv1", "xsave", "xsavec",
        "xsaveopt",
    ], NOTHING),
    Model("EPYC-IBPB", AMD, "EPYC", &["ibpb"], NOTHING),
    Model("EPYC-Rome", AMD, "EPYC-IBPB", &[
        "amd-stibp", "clwb", "clzero", "perfctr_core", "rdpid", "umip", "wbnoinvd", "xsaveerptr", "xsaves",
    ], NOTHING),
    Model("EPYC-Milan", AMD, "EPYC-Rome", &[
        "amd-ssbd", "erms", "fsrm", "ibrs", "invpcid", "pcid", "pku", "vaes", "vpclmulqdq",
    ], NOTHING),
    Model("EPYC-Genoa", AMD, "EPYC-Milan", &[
        "avx512-bf16", "avx512-vpopcntdq", "avx512bitalg", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512ifma",
        "avx512vbmi", "avx512vbmi2", "avx512vl", "avx512vnni", "gfni", "la57",
    ], NOTHING),
];

/// Left as they are, whatever the model.
const KEPT: &[&str] = &[
    // The hypervisor's own, and those that depend on what it or the kernel does.
    "hypervisor",
    "x2apic",
    "tsc-deadline",
    "tsc_adjust",
    "arat",
    "osxsave",
    "ospke",
    "ht",
    "cmp_legacy",
    "topoext",
    // Against faults of the host's processor.
    "spec-ctrl",
    "stibp",
    "ssbd",
    "md-clear",
    "flush-l1d",
    "arch-capabilities",
    "core-capability",
    "ibpb",
    "ibrs",
    "amd-stibp",
    "stibp-always-on",
    "amd-ssbd",
    "virt-ssbd",
    "amd-no-ssb",
    "amd-psfd",
    // Nothing that a program of today decides by.
    "vme",
    "ss",
    "cr8legacy",
    "extapic",
];

/// Leaves of features of the processor; those of KVM and of clocks are no model's.
const LEAVES: [u32; 5] = [0x1, 0x7, 0xd, 0x8000_0001, 0x8000_0008];

fn find(name: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.0 == name)
}

/// Whether there is a model of this name.
pub(super) fn is_known(name: &str) -> bool {
    find(name).is_some()
}

/// The names of all.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|model| model.0)
}

/// All features of a model.
fn features_of(name: &str) -> Vec<&'static str> {
    let Some(Model(_, _, base, with, without)) = find(name) else {
        return Vec::new();
    };
    let mut all = features_of(base);
    all.extend(*with);
    all.retain(|feature| !without.contains(feature));
    all
}

/// The plan with its model written out as features: required where the model has them, hidden where the host has more.
/// What the plan says of a feature itself counts.
pub(super) fn expand(plan: &CpuPlan, host: &HostCpu) -> Result<CpuPlan, CpuError> {
    let mut plan = plan.clone();
    let Some(model) = plan.model.take() else {
        return Ok(plan);
    };
    let Some(Model(_, maker, ..)) = find(&model) else {
        return Err(CpuError::UnknownModel { model });
    };
    let vendor = host.vendor();
    if maker.is_some() && vendor.as_deref() != *maker {
        let vendor = vendor.unwrap_or_default();
        return Err(CpuError::Maker { model, vendor });
    }
    let has = features_of(&model);
    let bits: Vec<_> = has.iter().filter_map(|name| features::find(name)).collect();
    // Some have two names.
    let is_said = |name: &str| {
        let same = |feature: &CpuFeature| features::find(&feature.name) == features::find(name);
        plan.features.iter().any(same)
    };
    let is_left = |name: &&str| KEPT.contains(name) || is_said(name);
    let feature = |name: &str, policy| CpuFeature {
        name: name.to_owned(),
        policy,
    };
    let needed = has.iter().filter(|name| !is_said(name));
    let needed = needed.map(|name| feature(name, FeaturePolicy::Require));
    let surplus = host.features().into_iter().filter(|name| !is_left(name));
    let surplus = surplus.filter(|name| {
        features::find(name).is_some_and(|bit| LEAVES.contains(&bit.leaf) && !bits.contains(&bit))
    });
    let surplus = surplus.map(|name| feature(name, FeaturePolicy::Disable));
    let mut all: Vec<_> = needed.chain(surplus).collect();
    all.append(&mut plan.features);
    plan.features = all;
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::bits::set;
    use super::super::cpuid::CpuidTemplate;
    use super::super::testing::{entry, plan};
    use super::*;

    /// A host that has these.
    fn host(maker: [u32; 3], names: &[&str]) -> HostCpu {
        let base = super::super::testing::host();
        let mut table = base.table().expect("table");
        for entry in table.as_mut_slice() {
            if entry.function == 0 {
                [entry.ebx, entry.edx, entry.ecx] = maker;
            }
        }
        for name in names {
            let bit = features::find(name).expect("known");
            set(&mut table, bit, true).expect("room");
        }
        HostCpu::from(&table)
    }

    const INTEL: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];

    fn model(name: &str, features: &[(&str, FeaturePolicy)]) -> CpuPlan {
        CpuPlan {
            model: Some(name.to_owned()),
            ..plan(1, 1, 1, features)
        }
    }

    #[test]
    fn models_are_made_of_features_that_are_known() {
        let known: BTreeSet<_> = names().collect();
        assert_eq!(known.len(), MODELS.len(), "each name once");
        for Model(name, _, base, with, without) in MODELS {
            assert!(base.is_empty() || is_known(base), "{name}");
            for feature in with.iter().chain(*without) {
                assert!(features::find(feature).is_some(), "{name}: {feature}");
            }
            let base = features_of(base);
            assert!(with.iter().all(|feature| !base.contains(feature)), "{name}");
            assert!(
                without.iter().all(|feature| base.contains(feature)),
                "{name}"
            );
        }
        for name in KEPT {
            assert!(features::find(name).is_some(), "{name}");
        }
        let of = |name| features_of(name).into_iter().collect::<BTreeSet<_>>();
        assert!(of("Haswell").is_superset(&of("Westmere")));
        let without: Vec<_> = of("Broadwell")
            .difference(&of("Broadwell-noTSX"))
            .copied()
            .collect();
        assert_eq!(without, TSX);
        assert_eq!(of("kvm64").len(), 26);
    }

    /// The model says `pclmuldq`.
    #[test]
    fn what_the_vmi_says_by_another_name_counts() {
        let host = host(INTEL, &features_of("Nehalem"));
        let said = [
            ("pclmulqdq", FeaturePolicy::Optional),
            ("aes", FeaturePolicy::Optional),
        ];
        let plan = expand(&model("Westmere", &said), &host).expect("the rest is there");
        CpuidTemplate::new(&host, &plan).expect("nothing is missing");
    }

    #[test]
    fn a_guest_has_what_its_model_has() {
        let newest = features_of("SapphireRapids");
        let host = host(INTEL, &newest);
        let plan = expand(&model("Nehalem", &[]), &host).expect("the host has more");
        let table = CpuidTemplate::new(&host, &plan)
            .expect("a table")
            .for_vcpu(0);
        let seen: BTreeSet<_> = HostCpu::from(&table).features().into_iter().collect();
        let wanted: BTreeSet<_> = features_of("Nehalem").into_iter().collect();
        let more: Vec<_> = seen.difference(&wanted).copied().collect();
        // Each of them is kept.
        assert_eq!(more, ["hypervisor", "spec-ctrl", "ssbd"]);
        assert!(wanted.is_subset(&seen), "{seen:?}");
        assert_eq!(entry(&table, 7, 0).ebx, 0, "no AVX2 and no AVX-512");
    }

    #[test]
    fn what_the_vmi_says_of_a_feature_counts() {
        use FeaturePolicy::{Disable, Optional, Require};
        let host = host(INTEL, &features_of("Westmere"));
        let named = [("avx", Optional), ("aes", Disable), ("popcnt", Require)];
        let plan = expand(&model("SandyBridge", &named), &host).expect("a plan");
        let policies = |name: &str| {
            let of = plan.features.iter().filter(|feature| feature.name == name);
            of.map(|feature| feature.policy).collect::<Vec<_>>()
        };
        for (name, policy) in named {
            assert_eq!(policies(name), [policy], "{name}");
        }
        let error = CpuidTemplate::new(&host, &plan).err().expect("refused");
        assert!(
            error.to_string().contains("\"rdtscp\" is required"),
            "{error}"
        );
    }

    #[test]
    fn models_of_another_maker_are_refused() {
        let host = host(INTEL, &[]);
        let error = expand(&model("EPYC", &[]), &host).expect_err("Intel's");
        assert!(error.is_refusal());
        let words =
            "CPU model \"EPYC\" is of another maker than the host's processor, which is Intel's";
        assert_eq!(error.to_string(), words);
        let error = expand(&model("Skylark", &[]), &host).expect_err("unknown");
        assert!(error.is_refusal());
        assert!(expand(&model("kvm64", &[]), &host).is_ok());
    }
}
