//! The guest's time stamp counter across a pause: it goes on from where it stood, as the other
//! clocks do, where KVM can give a guest a TSC of its own.

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{CpuId, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::Kvm;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::probe::{Level, Probe, ProbeError};

/// Requests on a vCPU that kvm-ioctls has for other architectures only.
mod request {
    #![allow(missing_docs)]
    use super::*;
    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
}

/// Reads the host's counter.
pub fn host() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and nothing disables it for user mode.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// How far a vCPU's counter is ahead of the host's, modulo 2^64. The vCPU must not be in `KVM_RUN`.
///
/// Needs Linux 5.16 (`Documentation/virt/kvm/devices/vcpu.rst`, group `KVM_VCPU_TSC_CTRL`).
pub fn offset(vcpu: &impl AsRawFd) -> io::Result<u64> {
    let mut offset = 0;
    access(vcpu, request::KVM_GET_DEVICE_ATTR(), &mut offset)?;
    Ok(offset)
}

/// Sets what [`offset`] tells.
pub fn set_offset(vcpu: &impl AsRawFd, mut offset: u64) -> io::Result<()> {
    access(vcpu, request::KVM_SET_DEVICE_ATTR(), &mut offset)
}

/// Reads or writes the difference between a vCPU's counter and the host's.
fn access(vcpu: &impl AsRawFd, request: libc::c_ulong, offset: &mut u64) -> io::Result<()> {
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: std::ptr::from_mut(offset) as u64,
        flags: 0,
    };
    // SAFETY: both requests read the attribute, and read or write the eight bytes that it points to.
    match unsafe { ioctl_with_ref(vcpu, request, &attribute) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a guest with this CPUID table sees a change of [`offset`]. Asked of a machine of
/// its own, because a KVM whose guests read the host's counter accepts the request all the same.
pub fn is_adjustable(kvm: &Kvm, cpuid: &CpuId) -> Result<bool, ProbeError> {
    /// More than passes between two looks.
    const TICKS: u64 = 1 << 40;
    for level in [Level::Kernel, Level::User] {
        let mut probe = Probe::new(kvm, cpuid, level)?;
        let before = probe.tsc()?;
        let Ok(offset) = offset(probe.vcpu()) else {
            return Ok(false);
        };
        if set_offset(probe.vcpu(), offset.wrapping_sub(TICKS)).is_err() {
            return Ok(false);
        }
        let moved = probe.tsc()?.wrapping_sub(before).wrapping_add(TICKS);
        if moved > TICKS / 2 {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use kvm_bindings::KVM_MAX_CPUID_ENTRIES;

    use super::*;

    #[test]
    fn the_question_has_an_answer_that_stays() {
        let Some(kvm) = crate::kvm::api::for_test() else {
            return;
        };
        let table = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .expect("table");
        let first = is_adjustable(&kvm, &table).expect("probe");
        assert_eq!(is_adjustable(&kvm, &table).expect("probe"), first);
    }

    #[test]
    fn the_hosts_counter_counts() {
        let first = host();
        assert!(host() > first);
    }
}
