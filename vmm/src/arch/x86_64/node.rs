//! What a cluster wants to know of a node before it sends a machine there.

use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{
    KVM_CAP_HYPERV, KVM_CAP_HYPERV_SEND_IPI, KVM_CAP_HYPERV_SYNIC, KVM_CAP_HYPERV_SYNIC2,
    KVM_CAP_HYPERV_TIME, KVM_CAP_HYPERV_TLBFLUSH, KVM_CAP_HYPERV_VP_INDEX,
};
use kvm_ioctls::{Cap, Kvm};

use super::cpu::HostCpu;
use crate::kvm::api::{KvmError, create_uninterrupted};

/// Machines as VMIs call them.
pub const MACHINE_TYPES: [&str; 1] = ["q35"];

/// The processor as guests can have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCpu {
    /// The maker, as libvirt calls it, if that can be told.
    pub vendor: Option<String>,
    /// Names of features, as libvirt calls them.
    pub features: Vec<&'static str>,
    /// What KVM has of Hyper-V, by KubeVirt's names.
    pub hyperv: Vec<&'static str>,
    /// The time stamp counter, if KVM tells.
    pub tsc: Option<Tsc>,
}

/// A time stamp counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tsc {
    /// Ticks a second.
    pub frequency: u64,
    /// Guests may have another frequency.
    pub is_scalable: bool,
}

/// KubeVirt's names, and what of KVM each stands for: a capability, or a register that guests can have
/// (TLFS, "Synthetic MSRs").
const HYPERV: [(&str, What); 12] = [
    ("base", What::Capability(KVM_CAP_HYPERV)),
    ("time", What::Capability(KVM_CAP_HYPERV_TIME)),
    ("vpindex", What::Capability(KVM_CAP_HYPERV_VP_INDEX)),
    ("tlbflush", What::Capability(KVM_CAP_HYPERV_TLBFLUSH)),
    ("ipi", What::Capability(KVM_CAP_HYPERV_SEND_IPI)),
    ("synic", What::Capability(KVM_CAP_HYPERV_SYNIC)),
    ("synic2", What::Capability(KVM_CAP_HYPERV_SYNIC2)),
    ("frequencies", What::Register(0x4000_0022)),
    ("reset", What::Register(0x4000_0003)),
    ("runtime", What::Register(0x4000_0010)),
    ("synictimer", What::Register(0x4000_00b0)),
    ("reenlightenment", What::Register(0x4000_0106)),
];

enum What {
    Capability(u32),
    Register(u32),
}

/// Asks `/dev/kvm`.
pub fn ask(fd: OwnedFd) -> Result<NodeCpu, KvmError> {
    let host = HostCpu::ask(fd.as_fd())?;
    // SAFETY: the descriptor is open and its ownership moves into Kvm.
    let kvm = unsafe { <Kvm as FromRawFd>::from_raw_fd(fd.into_raw_fd()) };
    let registers = kvm
        .get_msr_index_list()
        .map_err(KvmError::call("KVM_GET_MSR_INDEX_LIST"))?;
    let has = |what: &What| match what {
        What::Capability(number) => kvm.check_extension_raw(u64::from(*number)) > 0,
        What::Register(number) => registers.as_slice().contains(number),
    };
    let there = HYPERV.iter().filter(|(_, what)| has(what));
    Ok(NodeCpu {
        vendor: host.vendor(),
        features: host.features(),
        hyperv: there.map(|(name, _)| *name).collect(),
        tsc: tsc(&kvm)?,
    })
}

/// The counter of a vCPU that is made for the question.
fn tsc(kvm: &Kvm) -> Result<Option<Tsc>, KvmError> {
    if !kvm.check_extension(Cap::GetTscKhz) {
        return Ok(None);
    }
    let vm = create_uninterrupted(kvm).map_err(KvmError::call("KVM_CREATE_VM"))?;
    let vcpu = vm
        .create_vcpu(0)
        .map_err(KvmError::call("KVM_CREATE_VCPU"))?;
    let khz = vcpu
        .get_tsc_khz()
        .map_err(KvmError::call("KVM_GET_TSC_KHZ"))?;
    Ok(Some(Tsc {
        frequency: u64::from(khz) * 1000,
        is_scalable: kvm.check_extension(Cap::TscControl),
    }))
}
