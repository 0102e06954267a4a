//! What the host's KVM can show guests by CPUID, as launcher and vm process pass it on.

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};

use super::CpuError;
use super::bits::bit_of;
use super::features::{self, FeatureBit};
use crate::kvm::api::KvmError;

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

    /// The processor's maker as libvirt calls it (SDM and APM, CPUID leaf 0: EBX, EDX, ECX); nothing if the table
    /// has none.
    pub fn vendor(&self) -> Option<String> {
        let [_, ebx, ecx, edx] = self.leaf(0, 0)?;
        let bytes = [ebx, edx, ecx].map(u32::to_le_bytes).concat();
        let name = String::from_utf8(bytes).ok()?;
        Some(match name.as_str() {
            "GenuineIntel" => "Intel".to_owned(),
            "AuthenticAMD" => "AMD".to_owned(),
            "HygonGenuine" => "Hygon".to_owned(),
            _ => name,
        })
    }

    /// Names of the features that guests can have.
    pub fn features(&self) -> Vec<&'static str> {
        let has = |bit: FeatureBit| {
            let words = self.leaf(bit.leaf, bit.subleaf);
            words.is_some_and(|words| bit_of(words, bit))
        };
        let there = features::all().filter(|(bit, _)| has(*bit));
        there.map(|(_, name)| name).collect()
    }

    /// EAX, EBX, ECX and EDX of a leaf.
    fn leaf(&self, function: u32, index: u32) -> Option<[u32; 4]> {
        let mut leaves = self.0.iter();
        leaves.find_map(|CpuidLeaf([at, sub, _, words @ ..])| {
            ((*at, *sub) == (function, index)).then_some(*words)
        })
    }

    /// The table as KVM takes it.
    pub(in super::super) fn table(&self) -> Result<CpuId, CpuError> {
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
