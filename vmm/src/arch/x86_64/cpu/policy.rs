//! The plan's features applied to a CPUID table.

use kvm_bindings::CpuId;

use super::CpuError;
use super::bits::{is_set, set};
use super::features;
use super::needs;
use crate::plan::{CpuFeature, CpuPlan, FeaturePolicy};

/// Changes the table as the plan says.
pub(super) fn apply_all(cpuid: &mut CpuId, plan: &CpuPlan) -> Result<(), CpuError> {
    hide_invariant_tsc(cpuid, plan)?;
    plan.features
        .iter()
        .try_for_each(|feature| apply(cpuid, feature))?;
    needs::settle(cpuid, plan)
}

/// A guest that knows its TSC to be invariant takes it for its clock and does not ask KVM for the
/// time, which stops in a pause. So the bit is hidden unless the VMI names it, as libvirt does.
fn hide_invariant_tsc(cpuid: &mut CpuId, plan: &CpuPlan) -> Result<(), CpuError> {
    const NAME: &str = "invtsc";
    if plan.features.iter().any(|feature| feature.name == NAME) {
        return Ok(());
    }
    features::find(NAME).map_or(Ok(()), |bit| set(cpuid, bit, false))
}

fn apply(cpuid: &mut CpuId, feature: &CpuFeature) -> Result<(), CpuError> {
    let name = || feature.name.clone();
    let Some(bit) = features::find(&feature.name) else {
        return match feature.policy {
            FeaturePolicy::Optional | FeaturePolicy::Forbid => Ok(()),
            _ => Err(CpuError::Unknown { name: name() }),
        };
    };
    match (feature.policy, is_set(cpuid, bit)) {
        (FeaturePolicy::Require, false) => Err(CpuError::Missing { name: name() }),
        (FeaturePolicy::Forbid, true) => Err(CpuError::Forbidden { name: name() }),
        (FeaturePolicy::Disable, _) => set(cpuid, bit, false),
        (FeaturePolicy::Force, _) => set(cpuid, bit, true),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{entry, host, plan};
    use super::*;

    fn applied(features: &[(&str, FeaturePolicy)]) -> Result<CpuId, CpuError> {
        let mut cpuid = host().table()?;
        apply_all(&mut cpuid, &plan(1, 1, 1, features))?;
        Ok(cpuid)
    }

    #[test]
    fn policies() {
        use FeaturePolicy::{Disable, Forbid, Force, Optional, Require};
        let ecx = |features: &[(&str, FeaturePolicy)]| {
            applied(features).map(|cpuid| entry(&cpuid, 1, 0).ecx)
        };
        assert_eq!(ecx(&[("cx16", Require)]).expect("host has it"), 1 << 13);
        assert_eq!(ecx(&[("cx16", Disable)]).expect("disabled"), 0);
        assert_eq!(
            ecx(&[("cx16", Optional), ("avx", Optional)]).expect("as is"),
            1 << 13
        );
        assert_eq!(ecx(&[("movbe", Force)]).expect("forced"), 1 << 13 | 1 << 22);
        assert!(matches!(
            ecx(&[("avx", Require)]),
            Err(CpuError::Missing { .. })
        ));
        assert!(matches!(
            ecx(&[("cx16", Forbid)]),
            Err(CpuError::Forbidden { .. })
        ));
        assert!(ecx(&[("avx", Forbid)]).is_ok());
        assert!(matches!(
            ecx(&[("nonsense", Require)]),
            Err(CpuError::Unknown { .. })
        ));
        assert!(matches!(
            ecx(&[("nonsense", Disable)]),
            Err(CpuError::Unknown { .. })
        ));
        assert!(ecx(&[("nonsense", Optional)]).is_ok());
        let forced = applied(&[("invtsc", Force)]);
        assert_eq!(
            entry(&forced.expect("new leaf"), 0x8000_0007, 0).edx,
            1 << 8
        );
    }
}
