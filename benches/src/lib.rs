//! Measures podvisor beside its peers, and beside what the host can do at best.
//!
//! A [`vmm::Vmm`] is somebody to measure: it turns a [`guest::GuestSpec`] into a command. A case
//! ([`cases`]) runs guests under each of them in turn and gives [`record::Sample`]s; nothing is
//! averaged before it is stored. Tables and plots are made from the stored samples alone.

pub mod ab;
pub mod cases;
pub mod guest;
pub mod host;
pub mod libvirt;
pub mod machine;
pub mod markdown;
pub mod net;
pub mod plot;
pub mod procfs;
pub mod record;
pub mod setting;
pub mod snapshot;
pub mod stats;
pub mod targets;
pub mod vm;
pub mod vmm;
