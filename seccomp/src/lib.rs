//! What a thread of podvisor may ask of the kernel, and how the vm process gives up everything
//! else before a guest runs.
//!
//! The rules are data: `filters/<arch>.json`, each with its reason, compiled to BPF when this crate
//! is built. A system call that no rule allows ends the process with SIGSYS, after a report that
//! names the call and the thread's role ([`violation`]).

pub mod jail;
pub mod probe;
pub mod violation;

use seccompiler::sock_filter;
use thiserror::Error;

include!(concat!(env!("OUT_DIR"), "/programs.rs"));

/// The C library that this was built for, as in the field `libc` of rules that only one needs.
pub const LIBC: &str = if cfg!(target_env = "musl") {
    "musl"
} else {
    "gnu"
};

/// The rules as they are reviewed, for people.
#[cfg(target_arch = "x86_64")]
pub const RULES: &str = include_str!("../filters/x86_64.json");
/// The rules as they are reviewed, for people.
#[cfg(target_arch = "aarch64")]
pub const RULES: &str = include_str!("../filters/aarch64.json");

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The event loop: what any thread may do, and building a machine. All other threads of the vm
    /// process inherit this filter and add their own.
    Process,
    /// The event loop and the steward once the machine's rings are made: takes away what only that
    /// needed. Its filter stands on that of `Process`, is inherited like it, and reports violations as
    /// that role's.
    Machine,
    /// Instead of [`Role::Machine`], where a debugger may come.
    DebuggedMachine,
    /// Serves a debugger.
    Debugger,
    /// A vCPU.
    Vcpu,
    /// A virtio-blk worker.
    Block,
    /// A virtio-net worker.
    Net,
    /// The same where it writes packets down.
    CapturedNet,
    /// Another virtio device's worker.
    Device,
    /// A virtio-balloon worker.
    Balloon,
    /// A virtio-console worker.
    Console,
    /// A virtio-vsock worker.
    Vsock,
    /// The launcher while the machine runs.
    Launcher,
    /// The launcher if it has to put the pod's network back after that.
    Restorer,
    /// The process that opens files for a launcher that cannot do so any more.
    Opener,
    /// The process that connects to sockets for a launcher that cannot do so any more.
    Connector,
    /// The first process of a KubeVirt pod.
    Monitor,
    /// The launcher of a KubeVirt pod, which virt-handler talks to.
    Service,
    /// The process that reads boot disks.
    Bootdisk,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 19] = [
        Self::Process,
        Self::Machine,
        Self::DebuggedMachine,
        Self::Debugger,
        Self::Vcpu,
        Self::Block,
        Self::Net,
        Self::CapturedNet,
        Self::Device,
        Self::Balloon,
        Self::Console,
        Self::Vsock,
        Self::Launcher,
        Self::Restorer,
        Self::Opener,
        Self::Connector,
        Self::Monitor,
        Self::Service,
        Self::Bootdisk,
    ];

    /// The name in the rules.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Machine => "machine",
            Self::DebuggedMachine => "debugged_machine",
            Self::Debugger => "debugger",
            Self::Vcpu => "vcpu",
            Self::Block => "block",
            Self::Net => "net",
            Self::CapturedNet => "captured_net",
            Self::Device => "device",
            Self::Balloon => "balloon",
            Self::Console => "console",
            Self::Vsock => "vsock",
            Self::Launcher => "launcher",
            Self::Restorer => "restorer",
            Self::Opener => "opener",
            Self::Connector => "connector",
            Self::Monitor => "monitor",
            Self::Service => "service",
            Self::Bootdisk => "bootdisk",
        }
    }

    /// The role that `name` is in the rules.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    fn program(self) -> &'static [sock_filter] {
        match self {
            Self::Process => PROCESS,
            Self::Machine => MACHINE,
            Self::DebuggedMachine => DEBUGGED_MACHINE,
            Self::Debugger => DEBUGGER,
            Self::Vcpu => VCPU,
            Self::Block => BLOCK,
            Self::Net => NET,
            Self::CapturedNet => CAPTURED_NET,
            Self::Device => DEVICE,
            Self::Balloon => BALLOON,
            Self::Console => CONSOLE,
            Self::Vsock => VSOCK,
            Self::Launcher => LAUNCHER,
            Self::Restorer => RESTORER,
            Self::Opener => OPENER,
            Self::Connector => CONNECTOR,
            Self::Monitor => MONITOR,
            Self::Service => SERVICE,
            Self::Bootdisk => BOOTDISK,
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

/// Processes that a role may kill, if it may kill any.
#[derive(Clone, Copy, Debug, Default)]
pub struct Others {
    /// The vm process.
    pub vm: Option<u32>,
    /// The launcher of a KubeVirt pod.
    pub launcher: Option<u32>,
}

/// Restricts the calling thread, and those that it will make, for good.
pub fn install(role: Role, others: Others) -> Result<(), InstallError> {
    if !matches!(role, Role::Machine | Role::DebuggedMachine) {
        violation::set_role(role);
    }
    let load = |program: &[sock_filter]| {
        seccompiler::apply_filter(program).map_err(|source| InstallError { role, source })
    };
    // glibc tries clone3 before clone.
    #[cfg(target_env = "gnu")]
    if role == Role::Process {
        load(NO_CLONE3)?;
    }
    load(&with_pids(role.program(), others))
}

/// The program with the numbers of processes in place of their stand-ins.
fn with_pids(program: &[sock_filter], others: Others) -> Vec<sock_filter> {
    let own = std::process::id();
    let mut program = program.to_vec();
    for instruction in &mut program {
        let pid = match instruction.k {
            SELF_PID => Some(own),
            VM_PID => others.vm,
            LAUNCHER_PID => others.launcher,
            _ => None,
        };
        // No process has the number of a stand-in.
        instruction.k = pid.unwrap_or(instruction.k);
    }
    program
}
