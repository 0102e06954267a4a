//! Exit statuses of podvisor; scripts and controllers read them.

use std::process::ExitCode;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The guest powered off; for other commands, all is well.
    Success = 0,
    /// podvisor failed.
    Internal = 1,
    /// Bad usage, or a VMI that cannot be honoured (clap uses the same number).
    Refused = 2,
    /// The guest crashed.
    GuestCrashed = 3,
    /// Stopped from outside before the guest powered off.
    Stopped = 4,
    /// A resource of the host is missing: no /dev/kvm, no permission, disk not found.
    HostResource = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
