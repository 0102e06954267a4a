//! Routes of KVM's GSIs: the GIC's shared peripheral interrupts, then messages.

use devices::irq::MsiMessage;
use kvm_bindings::{KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, kvm_irq_routing_entry};

use super::layout;

/// First GSI that no line has.
pub const FIRST_MSI: u32 = layout::SHARED_INTERRUPTS;

/// The lines: shared peripheral interrupts.
pub fn lines() -> impl Iterator<Item = kvm_irq_routing_entry> {
    (0..layout::SHARED_INTERRUPTS).map(|pin| {
        let mut entry = kvm_irq_routing_entry {
            gsi: pin,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip.irqchip = 0;
        entry.u.irqchip.pin = pin;
        entry
    })
}

/// The route of a message, without the device id that an interrupt translation service asks for.
pub fn message(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    // The low half of each split value; the casts cut on purpose.
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}
