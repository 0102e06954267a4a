//! The guest's clock over a pause: the virtual counter, which runs on.

use devices::state::State;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::cpu::Processors;
use crate::vcpu::Vcpus;

/// A pause.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stopped;

impl State for Stopped {
    const KIND: &'static str = "aarch64 clocks";
    const VERSION: u32 = 1;
}

impl Stopped {
    /// Notes nothing: nothing is stopped.
    pub fn at(_vm: &VmFd, _vcpus: &Vcpus) -> Self {
        Self
    }

    /// Sets nothing.
    pub fn restore_counters(&self, _vcpus: &[VcpuFd]) {}

    /// Sets nothing.
    pub fn catch_up(self, _vm: &VmFd) {}

    /// Says what the guest will notice.
    pub fn go_on(self, _kvm: &Kvm, _vm: &VmFd, _vcpus: &Vcpus, _processors: &Processors) {
        tracing::info!("the guest's counter ran on in the pause");
    }
}

/// There is nothing to tell: only kvmclock, which Arm does not have, knows of pauses.
pub fn tell_of_pause(_vcpu: &VcpuFd) {}
