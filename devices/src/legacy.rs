//! The few devices beside PCI that a guest needs: serial port and power control, and by architecture
//! what else its machines have.

pub mod power;
pub mod serial;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;
