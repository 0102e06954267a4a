//! Capabilities, in all five sets.

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{JailError, call};

/// What this thread may use.
pub(super) fn held() -> CapabilitySet {
    rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective)
}

/// Takes all but `kept` from what execution could ever give. Fails without CAP_SETPCAP, when the
/// bounding set is out of reach: with no_new_privs nothing can be gained by execution.
pub(super) fn empty_bounding_set(kept: CapabilitySet) {
    if !held().contains(CapabilitySet::SETPCAP) {
        return;
    }
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(capability) {
            continue;
        }
        // The first number that the kernel does not know is the end.
        if rustix::thread::remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
}

/// Drops all but `kept`, which the thread has.
pub(super) fn keep(kept: CapabilitySet) -> Result<(), JailError> {
    rustix::thread::clear_ambient_capability_set().map_err(call("clear ambient capabilities"))?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(call("drop capabilities"))
}
