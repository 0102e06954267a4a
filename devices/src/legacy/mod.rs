//! The few non-PCI devices that a PC guest needs: serial port, clock, panic device, power control.

pub mod cmos;
pub mod power;
pub mod pvpanic;
pub mod serial;
