//! The page that a vCPU shares with the kernel.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

/// Its address.
#[derive(Clone, Copy)]
pub(super) struct RunPage(NonNull<kvm_run>);

// SAFETY: the page is a shared mapping; it is read on the vCPU's thread, and other threads only
// store to the one byte that KVM defines for that, atomically.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    pub(super) fn of(vcpu: &mut VcpuFd) -> Self {
        Self(NonNull::from(vcpu.get_kvm_run()))
    }

    pub(super) fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the mapping lives as long as the VcpuFd, of which who has a RunPage has a share;
        // the kernel reads this byte only.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) }
    }

    /// Bytes of one element of the port access that just exited.
    pub(super) fn io_size(&self) -> usize {
        // SAFETY: called on the vCPU's thread after KVM_EXIT_IO, when this union member is valid.
        let size = unsafe { (*self.0.as_ptr()).__bindgen_anon_1.io.size };
        usize::from(size).max(1)
    }

    /// Suberror and data words of the internal error that just exited.
    pub(super) fn internal_error(&self) -> (u32, Vec<u64>) {
        // SAFETY: called on the vCPU's thread after KVM_EXIT_INTERNAL_ERROR, when this union
        // member is valid.
        let internal = unsafe { (*self.0.as_ptr()).__bindgen_anon_1.internal };
        let count = internal.data.len().min(internal.ndata as usize);
        (internal.suberror, internal.data[..count].to_vec())
    }
}
