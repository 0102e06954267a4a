//! What a thread of the vm process may ask of the kernel, and how the process gives up everything
//! else before a guest runs.
//!
//! The rules are data: `filters/<arch>.json`, each with its reason, compiled to BPF when this crate
//! is built. A system call that no rule allows ends the process with SIGSYS, after a report that
//! names the call and the thread's role ([`violation`]).

pub mod jail;
pub mod violation;

use seccompiler::sock_filter;
use thiserror::Error;

include!(concat!(env!("OUT_DIR"), "/programs.rs"));

/// The rules as they are reviewed, for people.
pub const RULES: &str = include_str!("../filters/x86_64.json");

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The event loop and the steward: what any thread may do, and building a machine. All other
    /// threads inherit this filter and add their own.
    Process,
    /// A vCPU.
    Vcpu,
    /// A virtio-blk worker.
    Block,
    /// A virtio-net worker.
    Net,
    /// Another virtio device's worker.
    Device,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [
        Self::Process,
        Self::Vcpu,
        Self::Block,
        Self::Net,
        Self::Device,
    ];

    /// The name in the rules.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Vcpu => "vcpu",
            Self::Block => "block",
            Self::Net => "net",
            Self::Device => "device",
        }
    }

    fn program(self) -> &'static [sock_filter] {
        match self {
            Self::Process => PROCESS,
            Self::Vcpu => VCPU,
            Self::Block => BLOCK,
            Self::Net => NET,
            Self::Device => DEVICE,
        }
    }
}

/// The kernel refused a filter.
#[derive(Debug, Error)]
#[error("Cannot install the seccomp filter of role {role:?}")]
pub struct InstallError {
    /// The role.
    pub role: Role,
    /// The cause.
    #[source]
    pub source: seccompiler::Error,
}

/// Restricts the calling thread, and those that it will make, for good.
pub fn install(role: Role) -> Result<(), InstallError> {
    violation::set_role(role);
    let load = |program| {
        seccompiler::apply_filter(program).map_err(|source| InstallError { role, source })
    };
    if role == Role::Process {
        load(NO_CLONE3)?;
    }
    load(role.program())
}
