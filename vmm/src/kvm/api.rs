//! Calls of the KVM API: how they fail. What needs a VM or a vCPU uses this and not what makes the machine's own.

use kvm_ioctls::{Kvm, VmFd};
use thiserror::Error;

use crate::memory::MemoryError;

/// The KVM interface that every Linux since 2.6.22 has.
pub(super) const API_VERSION: i32 = 12;

/// KVM cannot run this machine.
#[derive(Debug, Error)]
pub enum KvmError {
    /// The descriptor is not `/dev/kvm` or the kernel is of another world.
    #[error("/dev/kvm speaks API version {found}, not {API_VERSION}")]
    ApiVersion {
        /// What it said; -1 if the call failed.
        found: i32,
    },
    /// A capability is missing.
    #[error("The host's KVM lacks {name}")]
    Capability {
        /// The capability's name in the KVM API.
        name: &'static str,
    },
    /// A call failed.
    #[error("KVM call {call} failed")]
    Call {
        /// The request.
        call: &'static str,
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Memory slots.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl KvmError {
    /// For `map_err`.
    pub fn call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Call { call, source }
    }
}

/// A signal or a busy host makes the call give up half-way; it changed nothing then.
pub(crate) fn create_uninterrupted(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result,
        }
    }
}

/// For tests: none where they may be left out.
#[cfg(test)]
pub(crate) fn for_test() -> Option<Kvm> {
    let kvm = Kvm::new();
    if let Err(error) = &kvm {
        devices::testing::missing(format_args!("no /dev/kvm: {error}"));
    }
    kvm.ok()
}
