//! From a VirtualMachineInstance to a running machine: validation, plan, resources, supervision.
//!
//! ```text
//!   bytes ─▶ vmi ─▶ plan ─▶ resources ─▶ supervise ─▶ exit status
//!           strict  pure    opens all    one loop until the vm process is gone
//! ```
//!
//! Nothing later writes to anything earlier. This process never touches guest memory; the vm
//! process (this binary executed again) never opens a path.

#![forbid(unsafe_code)]

pub mod network;
pub mod vmi;
