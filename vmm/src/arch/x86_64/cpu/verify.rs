//! Whether a guest sees the features that the plan changes as changed: a KVM that runs guests without
//! hardware virtualization may show them the host's bits all the same.

use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;

use super::super::probe::{Level, Probe, ProbeError};
use super::CpuError;
use super::bits::bit_of;
use super::features;
use crate::plan::{CpuFeature, CpuPlan, FeaturePolicy};

/// Checks it from inside a guest that has this table.
pub(super) fn verify(kvm: &Kvm, cpuid: &CpuId, plan: &CpuPlan) -> Result<(), CpuError> {
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
        match Probe::new(kvm, cpuid, level) {
            Ok(probe) => probes.push(probe),
            Err(error) => return unverified(&error),
        }
    }
    for (feature, bit, wanted) in changed {
        for probe in &mut probes {
            match probe.cpuid(bit.leaf, bit.subleaf) {
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
