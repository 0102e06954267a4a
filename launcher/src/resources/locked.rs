//! Memory that the vm process locks, and the limit on that.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vmm::plan::MachinePlan;

use super::ResourceError;

/// What a vm process locks besides the RAM of a real-time guest: rings of its disks, on older kernels. Bytes.
const BESIDE_REALTIME: u64 = 64 << 20;

/// Room besides guest RAM for what a device of the host reaches, as KubeVirt gives. Bytes.
const BESIDE_DEVICES: u64 = 1 << 30;

/// What its vm process may have to lock, bytes: each counts by itself.
pub(crate) fn wanted(plan: &MachinePlan) -> u64 {
    let counted = [
        (plan.placement.realtime != 0, BESIDE_REALTIME),
        (!plan.host_devices.is_empty(), BESIDE_DEVICES),
    ];
    let counted = counted.into_iter().filter(|(locks, _)| *locks);
    let bytes = counted.map(|(_, beside)| plan.memory.bytes.saturating_add(beside));
    bytes.fold(0, u64::saturating_add)
}

/// Raises the limit of this process, which it may hand on, as far as that may be.
pub fn raise(plan: &MachinePlan) {
    let wanted = wanted(plan);
    let limit = getrlimit(Resource::Memlock);
    if wanted == 0 || limit.maximum.is_none_or(|maximum| wanted <= maximum) {
        return;
    }
    let raised = Rlimit {
        current: limit.current,
        maximum: Some(wanted),
    };
    if let Err(errno) = setrlimit(Resource::Memlock, raised) {
        tracing::debug!("cannot raise the limit on locked memory: {errno}");
    }
}

/// A device of the host that does not reach all of guest RAM would be found out by its guest. A real-time guest lives
/// without locked RAM and is told of it by the log.
pub(super) fn check(plan: &MachinePlan) -> Result<(), ResourceError> {
    if plan.host_devices.is_empty() {
        return Ok(());
    }
    let wanted = wanted(plan);
    match getrlimit(Resource::Memlock).maximum {
        Some(limit) if limit < wanted => Err(ResourceError::LockedMemory { wanted, limit }),
        _ => Ok(()),
    }
}
