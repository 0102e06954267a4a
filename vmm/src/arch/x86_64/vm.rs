//! What a VM needs of KVM on x86, and gets before it has devices and vCPUs.

use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};
use kvm_ioctls::{Cap, VmFd};

use super::layout;
use crate::kvm::api::KvmError;

/// Beside what every architecture requires.
pub const REQUIRED: [(Cap, &str); 3] = [
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
];

/// Makes the interrupt controllers, after the memory slots. The two 8259s begin masked: nobody
/// initialises them in a hardware-reduced machine, KVM routes every line to them too, and their
/// interrupts would be exceptions of the guest. A guest that wants them unmasks them.
pub fn prepare(vm: &VmFd) -> Result<(), KvmError> {
    let tss = usize::try_from(layout::KVM_TSS).map_err(|_| KvmError::Capability {
        name: "a 64-bit host",
    })?;
    vm.set_tss_address(tss)
        .map_err(KvmError::call("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip()
        .map_err(KvmError::call("KVM_CREATE_IRQCHIP"))?;
    [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE]
        .into_iter()
        .try_for_each(|chip| mask_8259(vm, chip))
}

fn mask_8259(vm: &VmFd, chip_id: u32) -> Result<(), KvmError> {
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip)
        .map_err(KvmError::call("KVM_GET_IRQCHIP"))?;
    // A plain assignment to a union's field of plain data.
    chip.chip.pic.imr = 0xff;
    vm.set_irqchip(&chip)
        .map_err(KvmError::call("KVM_SET_IRQCHIP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_8259s_begin_masked() {
        let Some(kvm) = crate::kvm::api::for_test() else {
            return;
        };
        let vm = crate::kvm::api::create_uninterrupted(&kvm).expect("VM");
        prepare(&vm).expect("interrupt controllers");
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip).expect("state");
            // SAFETY: KVM filled in this member for these two chips.
            assert_eq!(unsafe { chip.chip.pic.imr }, 0xff, "chip {chip_id}");
        }
    }
}
