//! The VM object: what KVM must offer, and the order in which the VM is made.

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;

use crate::arch;
use crate::memory::{MemoryError, Ram};

/// The KVM interface that every Linux since 2.6.22 has.
const API_VERSION: i32 = 12;

/// Beside what the architecture requires.
const REQUIRED: [(Cap, &str); 7] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::IrqfdResample, "KVM_CAP_IRQFD_RESAMPLE"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

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

/// The host's KVM, and what can be made with it before a machine is known.
pub struct Hypervisor {
    kvm: Kvm,
    /// The first machine's, without anything in it.
    spare: Option<VmFd>,
}

impl Hypervisor {
    /// Wraps the launcher's `/dev/kvm`, checks what it offers and makes the first VM, while the
    /// launcher reads the VMI.
    pub fn open(fd: OwnedFd) -> Result<Self, KvmError> {
        // SAFETY: the descriptor is open and its ownership moves into Kvm.
        let kvm = unsafe { <Kvm as FromRawFd>::from_raw_fd(fd.into_raw_fd()) };
        let found = kvm.get_api_version();
        if found != API_VERSION {
            return Err(KvmError::ApiVersion { found });
        }
        let mut required = REQUIRED.iter().chain(&arch::vm::REQUIRED);
        if let Some((_, name)) = required.find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(KvmError::Capability { name });
        }
        let spare = create_uninterrupted(&kvm).map_err(KvmError::call("KVM_CREATE_VM"))?;
        Ok(Self {
            kvm,
            spare: Some(spare),
        })
    }

    /// For questions.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Makes a VM with RAM and an in-kernel interrupt controller.
    ///
    /// Memory slots come first: with interrupt controller and vCPUs present the same call costs 5 to
    /// 10 ms, because it then waits for readers on all CPUs.
    pub fn create_vm(&mut self, ram: &Ram) -> Result<Arc<VmFd>, KvmError> {
        let vm = match self.spare.take() {
            Some(vm) => vm,
            None => create_uninterrupted(&self.kvm).map_err(KvmError::call("KVM_CREATE_VM"))?,
        };
        ram.register(&vm)?;
        arch::vm::prepare(&vm)?;
        tracing::debug!(fd = vm.as_raw_fd(), "VM created");
        Ok(Arc::new(vm))
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
