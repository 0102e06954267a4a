//! What is done with a fuzzer's input. `tests/fuzz/libfuzzer` feeds these functions from libFuzzer,
//! `tests/corpus.rs` from the kept corpus.
//!
//! A target panics where podvisor's promise is broken: besides crashes and hangs, that a driver that
//! behaves finds a working device after everything that another one did to it.

pub mod agent;
pub mod balloon;
pub mod block;
pub mod bootdisk;
pub mod console;
pub mod control;
pub mod dhcp;
mod dhcpv6;
pub mod files;
pub mod image;
pub mod input;
mod json;
pub mod kernel;
pub mod legacy;
pub mod memory;
pub mod net;
pub mod opener;
pub mod pci;
pub mod pod;
pub mod qcow2;
pub mod queue;
pub mod rig;
pub mod rng;
mod sent;
pub mod snapshot;
pub mod state;
pub mod stream;
pub mod vfio;
pub mod vmi;
pub mod watchdog;

/// A target: its name, which is that of its corpus, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("queue", queue::run),
    ("block", block::run),
    ("image", image::run),
    ("net", net::run),
    ("stream", stream::run),
    ("rng", rng::run),
    ("balloon", balloon::run),
    ("console", console::run),
    ("pci", pci::run),
    ("legacy", legacy::run),
    ("state", state::run),
    ("snapshot", snapshot::run),
    ("vmi", vmi::run),
    ("qcow2", qcow2::run),
    ("quantity", vmi::run_quantity),
    ("dhcp", dhcp::run),
    ("control", control::run),
    ("opener", opener::run),
    ("kernel", kernel::run),
    ("pod", pod::run),
    ("bootdisk", bootdisk::run),
    ("agent", agent::run),
    ("files", files::run),
    ("watchdog", watchdog::run),
    ("vfio", vfio::run),
];
