//! x86-64 PCs: CPUID, local APIC and I/O APIC of KVM, ACPI, PVH and Linux boot protocols.

pub mod boot;
pub mod clock;
pub mod cpu;
pub mod crash;
pub mod debug;
pub mod dump;
pub mod irq;
pub mod layout;
pub mod node;
pub mod platform;
pub mod state;
pub mod vm;

mod acpi;
mod probe;
mod regs;
mod smbios;
mod tsc;
