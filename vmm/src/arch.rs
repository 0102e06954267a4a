//! What differs between processor architectures. The folder is chosen here and nowhere else: both
//! have the same modules with the same names, and the rest of the crate calls those.
//!
//! | module | what it has |
//! |---|---|
//! | [`layout`] | the guest physical address map and interrupt numbers |
//! | [`vm`] | what KVM must offer, and what a VM gets before devices and vCPUs |
//! | [`cpu`] | the host's processor, features, vCPUs and their first registers |
//! | [`boot`] | kernel, initrd, tables and entry point in guest memory |
//! | [`node`] | what a cluster wants to know of this host |
//! | [`platform`] | devices at fixed addresses |
//! | [`irq`] | routes of lines and messages |
//! | [`clock`] | guest clocks over a pause |
//! | [`crash`] | registers of a guest that died |
//! | [`debug`] | registers and traps for a debugger |
//! | [`dump`] | registers and page tables for a dump |
//! | [`state`] | what KVM keeps of a machine, saved and put back |

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{boot, clock, cpu, crash, debug, dump, irq, layout, node, platform, state, vm};

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
pub use aarch64::{boot, clock, cpu, crash, debug, dump, irq, layout, node, platform, state, vm};
