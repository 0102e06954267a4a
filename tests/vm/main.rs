//! Tests through the real binary with real guests: `make vm-tests`. See the crate's root for what
//! they need. Linux guests take half a minute each where kernels are interpreted, so each serves
//! several tests in one; the bare-metal payload does for the rest.

mod adopted;
mod agent;
mod balloon;
mod boot;
mod bootdisk;
mod channel;
mod console;
mod crash;
mod customize;
mod debugger;
mod deploy;
mod devices;
mod disk;
mod fleet;
mod forged;
mod hardware;
mod home;
mod hostile;
mod hotplug;
mod jail;
mod kubevirt;
mod life;
mod log;
mod network;
mod network_bindings;
mod network_fields;
mod network_kill;
mod opener;
mod passt;
mod pause;
mod pipeline;
mod pod;
mod power;
mod restored;
mod rules;
mod snapshot;
mod status;
mod stop;
mod tools;
mod volumes;
