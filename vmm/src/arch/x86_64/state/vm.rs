//! What the vCPUs share beside the clock: interrupt controllers.

use devices::state::State;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::StateError;
use crate::kvm::api::KvmError;

const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// Both 8259s, the I/O APIC with the levels of its lines.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    chips: Vec<kvm_irqchip>,
}

impl State for VmState {
    const KIND: &'static str = "x86-64 interrupt controllers";
    const VERSION: u32 = 1;
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
        })
    }

    /// Puts it into a VM whose interrupt controllers are made.
    pub fn restore(&self, vm: &VmFd) -> Result<(), StateError> {
        for chip in &self.chips {
            vm.set_irqchip(chip)
                .map_err(KvmError::call("KVM_SET_IRQCHIP"))?;
        }
        Ok(())
    }
}
