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
    /// What was to be done in the guest (`customize`) failed there.
    GuestFailed = 6,
}

impl Exit {
    /// What a podvisor has ended with, by its status.
    pub fn of_status(status: i32) -> Self {
        let all = [
            Self::Success,
            Self::Refused,
            Self::GuestCrashed,
            Self::Stopped,
            Self::HostResource,
            Self::GuestFailed,
        ];
        let found = all.into_iter().find(|exit| *exit as i32 == status);
        found.unwrap_or(Self::Internal)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
