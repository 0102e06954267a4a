//! The VM object: what KVM must offer, and the order in which the VM is made.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;

use crate::cpu::cpuid::CpuidLeaf;
use crate::layout;
use crate::memory::{MemoryError, Ram};

/// The KVM interface that every Linux since 2.6.22 has.
const API_VERSION: i32 = 12;

const REQUIRED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
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
        if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
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
        let tss = usize::try_from(layout::KVM_TSS).map_err(|_| KvmError::Capability {
            name: "a 64-bit host",
        })?;
        vm.set_tss_address(tss)
            .map_err(KvmError::call("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip()
            .map_err(KvmError::call("KVM_CREATE_IRQCHIP"))?;
        tracing::debug!(fd = vm.as_raw_fd(), "VM created");
        Ok(Arc::new(vm))
    }
}

/// What this KVM can show guests by CPUID. The launcher asks, while the vm process restricts itself:
/// KVM takes a third of a millisecond to answer.
pub fn supported_cpuid(fd: BorrowedFd<'_>) -> Result<Vec<CpuidLeaf>, KvmError> {
    let call = "KVM_GET_SUPPORTED_CPUID";
    let fd = fd
        .try_clone_to_owned()
        .map_err(|error| KvmError::call(call)(error.into()))?;
    // SAFETY: the descriptor is open and its ownership moves into Kvm.
    let kvm = unsafe { <Kvm as FromRawFd>::from_raw_fd(fd.into_raw_fd()) };
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::call(call))?;
    Ok(cpuid.as_slice().iter().map(CpuidLeaf::from).collect())
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
