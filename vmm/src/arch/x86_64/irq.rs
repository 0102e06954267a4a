//! The lines that KVM's first GSIs lead to: the I/O APIC's pins.

pub use kvm_bindings::KVM_IRQCHIP_IOAPIC as CHIP;

pub use super::layout::IO_APIC_PINS as LINES;
