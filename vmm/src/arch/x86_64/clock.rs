//! The guest's clocks over a pause: kvmclock and the vCPUs' time stamp counters stand still.

use std::ops::Deref;

use kvm_bindings::{CpuId, kvm_clock_data};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::cpu::Processors;
use super::tsc;
use crate::vcpu::Vcpus;

/// The guest's clocks when it was paused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stopped {
    clock: Option<kvm_clock_data>,
    /// The host's time stamp counter.
    host_tsc: u64,
    /// The vCPUs' from there; none where KVM does not tell.
    tsc_offsets: Vec<u64>,
}

impl Stopped {
    /// Notes the clocks of a VM whose vCPUs are parked.
    pub fn at(vm: &VmFd, vcpus: &Vcpus) -> Self {
        let offsets = vcpus.parked().map(|vcpu| tsc::offset(&*vcpu));
        Self {
            clock: vm.get_clock().ok(),
            host_tsc: tsc::host(),
            tsc_offsets: offsets.collect::<Result<_, _>>().unwrap_or_default(),
        }
    }

    /// Lets them go on from there.
    pub fn go_on(self, kvm: &Kvm, vm: &VmFd, vcpus: &Vcpus, processors: &Processors) {
        self.set_counters(kvm, vcpus.parked(), &processors.boot_cpuid());
        if let Some(mut clock) = self.clock {
            // Only the time is to be set; the flags say what else the kernel reported.
            clock.flags = 0;
            if let Err(error) = vm.set_clock(&clock) {
                tracing::warn!(%error, "guest clock jumps by the length of the pause");
            }
        }
    }

    /// Lets the vCPUs' time stamp counters go on from where they stood. Set and not shifted: a KVM
    /// whose host has unstable counters shifts them by itself. A guest that was not told that its
    /// counter is invariant does not use it as a clock, so a KVM without offsets does little harm.
    pub fn set_counters(
        &self,
        kvm: &Kvm,
        vcpus: impl Iterator<Item: Deref<Target = VcpuFd>>,
        cpuid: &CpuId,
    ) {
        match tsc::is_adjustable(kvm, cpuid) {
            Ok(true) => {
                let ticks = tsc::host().wrapping_sub(self.host_tsc);
                let mut offsets = vcpus.zip(&self.tsc_offsets);
                let set = offsets.try_for_each(|(vcpu, offset)| {
                    tsc::set_offset(&*vcpu, offset.wrapping_sub(ticks))
                });
                if let Err(error) = set {
                    tracing::warn!(%error, "guest TSC jumps by the length of the pause");
                }
            }
            Ok(false) => {
                tracing::info!("this KVM's guests see the host's TSC, which ran on in the pause");
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "guest TSC jumps by the length of the pause");
            }
        }
    }
}

/// Tells the guest's watchdogs that this vCPU was paused; fails if it does not use kvmclock.
pub fn tell_of_pause(vcpu: &VcpuFd) {
    let _ = vcpu.kvmclock_ctrl();
}
