//! What the processes of a run give up: the vm process before it has anything, the launcher once
//! the machine has all it needs.

use std::error::Error;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use devices::thread::ThreadRole;
use rustix::process::{Pid, Signal};
use rustix::thread::CapabilitySet;
use seccomp::jail::{self, JailError, Use, User};
use seccomp::violation::{self, Report};
use seccomp::{InstallError, Others, Role};
use thiserror::Error as ThisError;

use super::VmProcess;

/// The launcher cannot give up what it should.
#[derive(Debug, ThisError)]
pub enum RestrictError {
    /// Privileges.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The handler of violations.
    #[error("Cannot report violations of the seccomp filter")]
    Report(#[source] std::io::Error),
    /// The filter.
    #[error(transparent)]
    Filter(#[from] InstallError),
}

/// A device names a role that no filter has.
#[derive(Debug, ThisError)]
#[error("There is no seccomp filter of role {0}")]
struct UnknownRole(&'static str);

/// Where the settings are that a restored network may need (`network::sysctl`).
const NETWORK_SETTINGS: [&str; 2] = ["/proc/sys/net/ipv6/conf", "/proc/sys/net/bridge"];

/// What the launcher still has to do when the machine runs, beside watching it.
#[derive(Debug, Default)]
pub struct Remains {
    /// The pod's network has to be put back; the directory of its saved state.
    pub network: Option<PathBuf>,
    /// Sockets to remove at the end.
    pub sockets: Vec<PathBuf>,
}

impl Remains {
    fn paths(&self) -> Vec<(PathBuf, Use)> {
        let directory = |path: &PathBuf| match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let removed = self.sockets.iter().map(directory);
        let mut paths: Vec<_> = removed
            .chain(self.network.clone())
            .map(|path| (path, Use::Remove))
            .collect();
        if self.network.is_some() {
            paths.extend(NETWORK_SETTINGS.map(|path| (path.into(), Use::Change)));
        }
        paths
    }
}

/// Restricts the launcher to watching `vm` and to what remains to be done after it.
pub fn restrict_launcher(
    vm: &VmProcess,
    remains: &Remains,
    json_log: bool,
) -> Result<(), RestrictError> {
    if cfg!(feature = "bench-unrestricted") {
        return Ok(());
    }
    let (role, kept) = match remains.network {
        Some(_) => (Role::Restorer, CapabilitySet::NET_ADMIN),
        None => (Role::Launcher, CapabilitySet::empty()),
    };
    jail::shrink(vm.user(), kept, &remains.paths())?;
    let others = Others {
        vm: Some(number(vm.pid())),
        launcher: None,
    };
    filter(role, others, json_log)
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// Restricts the first process of a KubeVirt pod to watching `vm` and `launcher` and to removing files of
/// `container_disks`; as root it keeps the right to kill a vm process that is `user`.
pub(crate) fn restrict_monitor(
    user: Option<User>,
    vm: Pid,
    launcher: Pid,
    container_disks: &Path,
) -> Result<(), RestrictError> {
    let removed = [(container_disks.to_owned(), Use::Remove)];
    let others = Others {
        vm: Some(number(vm)),
        launcher: Some(number(launcher)),
    };
    restrict_to(Role::Monitor, others, user, &removed)
}

/// Restricts the launcher of a KubeVirt pod to its clients.
pub(crate) fn restrict_service() -> Result<(), RestrictError> {
    restrict_to(Role::Service, Others::default(), None, &[])
}

fn restrict_to(
    role: Role,
    others: Others,
    user: Option<User>,
    paths: &[(PathBuf, Use)],
) -> Result<(), RestrictError> {
    if cfg!(feature = "bench-unrestricted") {
        return Ok(());
    }
    jail::shrink(user, CapabilitySet::empty(), paths)?;
    filter(role, others, true)
}

/// Installs a filter whose violations are told in the log.
pub(crate) fn filter(role: Role, others: Others, json_log: bool) -> Result<(), RestrictError> {
    let report = Report::Message {
        json: json_log,
        name: super::outcome::syscall_name,
    };
    violation::report_to(report).map_err(RestrictError::Report)?;
    Ok(seccomp::install(role, others)?)
}

/// Restricts the calling thread of the vm process to what its role needs; the first one gives up
/// the rest of the process's privileges before.
pub(super) fn restrict_thread(
    role: ThreadRole,
    user: Option<User>,
    parent: Pid,
    report_fd: RawFd,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    if cfg!(feature = "bench-unrestricted") {
        return Ok(());
    }
    let role = match role {
        ThreadRole::EventLoop => {
            jail::enter(user)?;
            // A change of user or capabilities would take it back.
            jail::die_with(parent, Signal::KILL)?;
            violation::report_to(Report::Event(report_fd))?;
            Role::Process
        }
        ThreadRole::Machine => Role::Machine,
        ThreadRole::DebuggedMachine => Role::DebuggedMachine,
        ThreadRole::Debugger => Role::Debugger,
        ThreadRole::Vcpu => Role::Vcpu,
        ThreadRole::Device(name) => Role::named(name).ok_or(UnknownRole(name))?,
    };
    Ok(seccomp::install(role, Others::default())?)
}
