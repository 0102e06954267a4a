//! Whether a guest sees the features that the plan changes as changed: a KVM that runs guests without
//! hardware virtualization may show them the host's bits all the same.

use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;

use super::super::probe::{Level, Probe, ProbeError};
use super::CpuError;
use super::bits::bit_of;
use super::features::{self, FeatureBit};
use crate::plan::{CpuFeature, CpuPlan, FeaturePolicy};

/// Checks it from inside a guest that has this table.
pub(super) fn verify(kvm: &Kvm, cpuid: &CpuId, plan: &CpuPlan) -> Result<(), CpuError> {
    if changes(plan).next().is_none() {
        return Ok(());
    }
    let mut probes = Vec::new();
    for level in [Level::Kernel, Level::User] {
        match Probe::new(kvm, cpuid, level) {
            Ok(probe) => probes.push(probe),
            Err(error) => return unverified(&error),
        }
    }
    for probe in &mut probes {
        check_seen(plan, |leaf, subleaf| probe.cpuid(leaf, subleaf))?;
    }
    Ok(())
}

/// The features that the plan changes, with the bit to be seen.
fn changes(plan: &CpuPlan) -> impl Iterator<Item = (&CpuFeature, FeatureBit, bool)> {
    let features = plan.features.iter();
    features.filter_map(|feature| Some((feature, features::find(&feature.name)?, wanted(feature)?)))
}

/// Compares the changes with what `look` (leaf, subleaf) sees from inside.
fn check_seen(
    plan: &CpuPlan,
    mut look: impl FnMut(u32, u32) -> Result<[u32; 4], ProbeError>,
) -> Result<(), CpuError> {
    for (feature, bit, wanted) in changes(plan) {
        match look(bit.leaf, bit.subleaf) {
            Ok(words) if bit_of(words, bit) != wanted => {
                return Err(CpuError::Unchangeable {
                    name: feature.name.clone(),
                    policy: feature.policy,
                    shown: if wanted { "clear" } else { "set" },
                });
            }
            Ok(_) => {}
            Err(error) => return unverified(&error),
        }
    }
    Ok(())
}

/// The bit that a policy makes, if it makes one.
fn wanted(feature: &CpuFeature) -> Option<bool> {
    match feature.policy {
        FeaturePolicy::Disable => Some(false),
        FeaturePolicy::Force => Some(true),
        FeaturePolicy::Require | FeaturePolicy::Optional | FeaturePolicy::Forbid => None,
    }
}

/// Not to know is no reason not to run.
fn unverified(error: &ProbeError) -> Result<(), CpuError> {
    let error = error as &dyn std::error::Error;
    tracing::warn!(error, "cannot verify the CPU features that the guest sees");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::plan;
    use super::*;

    /// User code of a KVM without hardware virtualization on AMD's processors: CPUID does not fault
    /// there, so it shows the processor's own bits.
    #[test]
    fn a_bit_that_guests_see_all_the_same_is_refused() {
        use FeaturePolicy::{Disable, Force, Optional};
        const POPCNT_AND_CX16: u32 = 1 << 23 | 1 << 13;
        let seen = |features: &[(&str, FeaturePolicy)], ecx| {
            check_seen(&plan(1, 1, 1, features), |leaf, subleaf| {
                assert_eq!((leaf, subleaf), (1, 0));
                Ok([0, 0, ecx, 0])
            })
        };
        let hidden = [("cx16", Disable), ("avx", Optional)];
        assert!(seen(&hidden, 0).is_ok());
        let error = seen(&hidden, POPCNT_AND_CX16).expect_err("shown");
        assert!(error.is_refusal());
        let words = "\"cx16\" cannot have policy disable: this host's KVM shows guests the host's own \
                     bit, which is set";
        assert!(error.to_string().contains(words), "{error}");
        let error = seen(&[("avx", Force)], POPCNT_AND_CX16).expect_err("hidden");
        assert!(error.to_string().ends_with("which is clear"), "{error}");
        let blind = |_, _| {
            Err(ProbeError::Exit {
                exit: "Hlt".to_owned(),
            })
        };
        let unseen = check_seen(&plan(1, 1, 1, &hidden), blind);
        assert!(unseen.is_ok(), "not to know is no reason not to run");
    }
}
