//! What KVM keeps of a machine, saved and put back: vCPUs, interrupt controllers and clock. All of it
//! is taken and given while vCPUs are parked.
//!
//! KVM's own structures are kept as it fills them in; their layout is part of the kernel's interface.

mod msrs;
mod vcpu;
mod vm;

use thiserror::Error;

pub use self::msrs::SavedMsrs;
pub use self::vcpu::VcpuState;
pub use self::vm::VmState;
use crate::kvm::api::KvmError;

/// KVM's part of a machine cannot be saved or put back.
#[derive(Debug, Error)]
pub enum StateError {
    /// A call failed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The guest runs guests of its own, whose state lies in the processor.
    #[error(
        "The guest uses hardware virtualization for guests of its own; its state cannot be saved"
    )]
    Nested,
    /// A register would not take its value.
    #[error("KVM does not take the saved value {value:#x} of MSR {index:#x}")]
    Msr {
        /// The register.
        index: u32,
        /// The value.
        value: u64,
    },
}
