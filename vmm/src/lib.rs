//! The machine: memory, vCPUs, interrupts, PCI, ACPI, boot and lifecycle of one KVM guest.
//!
//! ```text
//!   Create            Pause              guest powers off, crashes,
//!  ────────▶ Running ───────▶ Paused     Stop, lost launcher
//!               │    ◀───────   │      ───────────────────────▶ end of process
//!               │     Resume
//!               └─ guest reset: torn down and built anew in the same process
//! ```
//!
//! [`process`] owns that state: it is the main function of the vm process, which receives a
//! [`plan::MachinePlan`] and open descriptors over [`control`], builds a [`machine::Machine`] and
//! serves its events on one thread. vCPUs and device queues run on threads of their own.

pub mod arch;
pub mod console;
pub mod control;
pub mod crash;
pub mod debug;
pub mod dump;
pub mod early;
pub mod fallbacks;
pub mod footprint;
pub mod host_devices;
pub mod interrupts;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod numa;
pub mod panics;
pub mod payload;
pub mod pci;
pub mod placement;
pub mod plan;
pub mod process;
pub mod shortage;
pub mod snapshot;
pub mod steward;
pub mod texts;
pub mod vcpu;
pub mod wall_clock;

pub use arch::layout;
pub use devices::trace;
