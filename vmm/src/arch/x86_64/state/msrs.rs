//! Model-specific registers: those that KVM lists, one by one, since hosts differ in what they let
//! be read or written.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::StateError;
use crate::kvm::api::KvmError;

/// The time stamp counter, which has a state of its own.
const TSC: u32 = 0x10;
/// When the local APIC's timer fires (Intel SDM volume 3A, 12.5.4.1); set after the APIC and the TSC.
const TSC_DEADLINE: u32 = 0x6e0;

/// The registers to save, of one host.
pub struct SavedMsrs(Vec<u32>);

impl SavedMsrs {
    /// Asks KVM which there are.
    pub fn of(kvm: &Kvm) -> Result<Self, KvmError> {
        let list = kvm
            .get_msr_index_list()
            .map_err(KvmError::call("KVM_GET_MSR_INDEX_LIST"))?;
        let mut indexes = list.as_slice().to_vec();
        indexes.retain(|index| !matches!(*index, TSC | TSC_DEADLINE));
        indexes.push(TSC_DEADLINE);
        Ok(Self(indexes))
    }

    /// What can be read, in the order in which it is to be set.
    pub(super) fn read(&self, vcpu: &VcpuFd) -> Vec<(u32, u64)> {
        let value = |index: &u32| read(vcpu, *index).map(|value| (*index, value));
        self.0.iter().filter_map(value).collect()
    }
}

/// Sets the registers. One that cannot be set must have its value already.
pub(super) fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), StateError> {
    values.iter().try_for_each(|&(index, value)| {
        if set(vcpu, index, value) || read(vcpu, index) == Some(value) {
            Ok(())
        } else {
            Err(StateError::Msr { index, value })
        }
    })
}

fn one(index: u32, data: u64) -> Option<Msrs> {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[entry]).ok()
}

fn read(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut msrs = one(index, 0)?;
    let count = vcpu.get_msrs(&mut msrs).ok()?;
    let entry = msrs.as_slice().first().filter(|_| count == 1)?;
    Some(entry.data)
}

fn set(vcpu: &VcpuFd, index: u32, value: u64) -> bool {
    one(index, value).is_some_and(|msrs| matches!(vcpu.set_msrs(&msrs), Ok(1)))
}
