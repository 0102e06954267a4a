//! What a cluster wants to know of a node before it sends a machine there.

use std::os::fd::OwnedFd;

use crate::kvm::api::KvmError;

/// Machines as VMIs call them.
pub const MACHINE_TYPES: [&str; 1] = ["virt"];

/// The processor as guests can have it: nothing of it has names here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCpu {
    /// The maker, if that can be told.
    pub vendor: Option<String>,
    /// Names of features.
    pub features: Vec<&'static str>,
    /// What KVM has of Hyper-V.
    pub hyperv: Vec<&'static str>,
    /// The time stamp counter.
    pub tsc: Option<Tsc>,
}

/// A time stamp counter, which is x86's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tsc {
    /// Ticks a second.
    pub frequency: u64,
    /// Guests may have another frequency.
    pub is_scalable: bool,
}

/// Asks nothing.
pub fn ask(_fd: OwnedFd) -> Result<NodeCpu, KvmError> {
    Ok(NodeCpu {
        vendor: None,
        features: Vec::new(),
        hyperv: Vec::new(),
        tsc: None,
    })
}
