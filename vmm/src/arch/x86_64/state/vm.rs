//! What the vCPUs share: interrupt controllers and kvmclock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::StateError;
use crate::kvm::KvmError;

const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// Both 8259s, the I/O APIC with the levels of its lines, the clock.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState {
    chips: Vec<kvm_irqchip>,
    clock: kvm_clock_data,
}

impl VmState {
    /// Reads it.
    pub fn save(vm: &VmFd) -> Result<Self, StateError> {
        let chips = CHIPS.into_iter().map(|chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(KvmError::call("KVM_GET_IRQCHIP"))?;
            Ok::<_, KvmError>(chip)
        });
        Ok(Self {
            chips: chips.collect::<Result<_, _>>()?,
            clock: vm.get_clock().map_err(KvmError::call("KVM_GET_CLOCK"))?,
        })
    }

    /// kvmclock's time, nanoseconds.
    #[cfg(test)]
    pub(super) fn clock(&self) -> u64 {
        self.clock.clock
    }

    /// Puts it into a VM whose interrupt controllers are made. The clock goes on from here.
    pub fn restore(&self, vm: &VmFd) -> Result<(), StateError> {
        for chip in &self.chips {
            vm.set_irqchip(chip)
                .map_err(KvmError::call("KVM_SET_IRQCHIP"))?;
        }
        let mut clock = self.clock;
        // Only the time is to be set; the flags say what else the kernel reported.
        clock.flags = 0;
        vm.set_clock(&clock)
            .map_err(KvmError::call("KVM_SET_CLOCK"))?;
        Ok(())
    }
}
