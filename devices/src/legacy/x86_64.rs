//! Devices at ports of a PC.

pub mod cmos;
pub mod pvpanic;
pub mod reset_port;
