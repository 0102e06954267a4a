//! The VM object: what KVM must offer, and the order in which the VM is made.

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm, VmFd};

pub(crate) mod api;

pub use self::api::KvmError;
use self::api::{API_VERSION, create_uninterrupted};
use crate::arch;
use crate::memory::Ram;

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
