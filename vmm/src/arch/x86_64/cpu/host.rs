//! What the host's KVM can show guests by CPUID, as launcher and vm process pass it on.

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};

use super::CpuError;
use crate::kvm::KvmError;

/// The table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostCpu(pub(super) Vec<CpuidLeaf>);

impl HostCpu {
    /// Asks `/dev/kvm`. The launcher does, while the vm process restricts itself: KVM takes a third of
    /// a millisecond to answer.
    pub fn ask(fd: BorrowedFd<'_>) -> Result<Self, KvmError> {
        let call = "KVM_GET_SUPPORTED_CPUID";
        let fd = fd
            .try_clone_to_owned()
            .map_err(|error| KvmError::call(call)(error.into()))?;
        // SAFETY: the descriptor is open and its ownership moves into Kvm.
        let kvm = unsafe { <Kvm as FromRawFd>::from_raw_fd(fd.into_raw_fd()) };
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::call(call))?;
        Ok(Self::from(&cpuid))
    }

    /// The table as KVM takes it.
    pub(super) fn table(&self) -> Result<CpuId, CpuError> {
        let entries: Vec<_> = self.0.iter().map(kvm_cpuid_entry2::from).collect();
        CpuId::from_entries(&entries).map_err(|_| CpuError::Full)
    }
}

impl From<&CpuId> for HostCpu {
    fn from(table: &CpuId) -> Self {
        Self(table.as_slice().iter().map(CpuidLeaf::from).collect())
    }
}

/// A CPUID leaf: function, index, flags of KVM, then EAX, EBX,
/// ECX, EDX. As plain numbers, because the table is most of the message that starts a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf(pub(super) [u32; 7]);

impl From<&kvm_cpuid_entry2> for CpuidLeaf {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        let kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..
        } = *entry;
        Self([function, index, flags, eax, ebx, ecx, edx])
    }
}

impl From<&CpuidLeaf> for kvm_cpuid_entry2 {
    fn from(leaf: &CpuidLeaf) -> Self {
        let [function, index, flags, eax, ebx, ecx, edx] = leaf.0;
        Self {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }
}
