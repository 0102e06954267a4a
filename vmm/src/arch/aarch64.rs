//! 64-bit Arm machines. Processors, the address map and the devices at fixed addresses are real;
//! what a kernel is told of them, a device tree, is not written yet, so [`boot::load`] refuses every
//! machine.

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
