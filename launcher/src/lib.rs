//! From a VirtualMachineInstance to a running machine: validation, plan, resources, supervision.
//!
//! ```text
//!   bytes ─▶ vmi ─▶ plan ─▶ resources ─▶ supervise ─▶ exit status
//!           strict  pure    opens all    one loop until the vm process is gone
//! ```
//!
//! Nothing later writes to anything earlier. This process never touches guest memory; the vm
//! process (a fork of this one) never opens a path.

#![forbid(unsafe_code)]

pub mod boot_trace;
pub mod bootdisk;
pub mod cli;
pub mod commands;
pub mod exit;
pub mod home;
pub mod kept;
pub mod kubevirt;
pub mod logging;
pub mod machines;
mod metrics;
pub mod network;
pub mod opener;
pub mod plan;
mod registers;
pub mod report;
pub mod resources;
mod streams;
pub mod supervise;
pub mod symbols;
pub mod terminal;
pub mod vmi;
