//! The protocol between launcher and vm process; the control socket speaks the same in lines.
//!
//! On a `SOCK_SEQPACKET` socket pair, one JSON message a packet, descriptors as `SCM_RIGHTS` of the
//! packet that is about them:
//!
//! ```text
//!   launcher                                   vm process
//!      │ Hello {version}, /dev/kvm                  │
//!      ├───────────────────────────────────────────▶│
//!      │ Create {plan, …}, all other descriptors    │
//!      ├───────────────────────────────────────────▶│ builds
//!      │                 Notice {event, state}      │
//!      │◀───────────────────────────────────────────┤ running, paused, reset, …
//!      │ Call {id, command}                         │
//!      ├───────────────────────────────────────────▶│
//!      │                 Reply {id, result | error} │
//!      │◀───────────────────────────────────────────┤ one for each call
//! ```
//!
//! Losing the socket ends the vm process; the launcher learns how from its wait status. A message has
//! at most [`MAX_MESSAGE`] bytes: what is larger (device state, guest RAM) goes through a descriptor
//! that comes with the call.

mod command;
mod event;
mod start;
mod wire;

pub use self::command::{Answer, Call, Command, MachineState, Refusal, Reply, Stats, Verdict};
pub use self::event::{Event, HostError, Notice, Report};
pub use self::start::{Create, FdRole, Hello};
pub use self::wire::{ControlError, MAX_FDS, MAX_MESSAGE, pair, receive, send, try_send};
pub use crate::crash::{CrashReport, VcpuRegisters};

/// Version of the protocol. Changed with whatever an older side would misunderstand.
pub const VERSION: u32 = 3;
