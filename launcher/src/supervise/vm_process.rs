//! The vm process: this binary once more, with nothing but a socket.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use devices::thread::{ThreadRole, ThreadSetupError};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use seccomp::Role;
use thiserror::Error as ThisError;
use vmm::control::{self, Command, ControlError, Event};
use vmm::process::Setup;

use crate::resources::Descriptors;

/// First argument of the vm process; not a subcommand for users.
pub const VM_PROCESS: &str = "vm-process";

/// A vm process that does not read its commands for so long gets no more of them.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The vm process cannot be started.
#[derive(Debug, ThisError)]
pub enum VmProcessError {
    /// No socket pair.
    #[error("Cannot make a socket pair for the vm process")]
    Socket(#[source] io::Error),
    /// No process.
    #[error("Cannot start the vm process from /proc/self/exe")]
    Spawn(#[source] io::Error),
    /// The first message did not get through.
    #[error("Cannot hand the machine to the vm process")]
    Create(#[source] ControlError),
}

/// A running vm process. Losing the socket ends it.
#[derive(Debug)]
pub struct VmProcess {
    socket: OwnedFd,
    pid: Pid,
}

impl VmProcess {
    /// Starts a vm process: a clean environment, the socket as standard input, no output but
    /// messages on standard error.
    pub fn spawn() -> Result<Self, VmProcessError> {
        let fail = |errno: rustix::io::Errno| VmProcessError::Socket(errno.into());
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .map_err(fail)?;
        sockopt::set_socket_timeout(&ours, Timeout::Send, Some(SEND_TIMEOUT)).map_err(fail)?;
        let child = std::process::Command::new("/proc/self/exe")
            .arg0("podvisor-vm")
            .arg(VM_PROCESS)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(VmProcessError::Spawn)?;
        Ok(Self {
            socket: ours,
            pid: Pid::from_child(&child),
        })
    }

    /// Hands over the machine: the first message and all descriptors.
    pub fn create(
        &self,
        command: &Command,
        descriptors: &Descriptors,
    ) -> Result<(), VmProcessError> {
        control::send(self.socket.as_fd(), command, &descriptors.fds())
            .map_err(VmProcessError::Create)
    }

    pub(super) fn send(&self, command: &Command) -> Result<(), ControlError> {
        control::send(self.socket.as_fd(), command, &[])
    }

    /// The next event; none when the vm process closed its end.
    pub(super) fn receive(&self) -> Result<Option<Event>, ControlError> {
        match control::receive(self.socket.as_fd()) {
            Ok((event, _)) => Ok(Some(event)),
            Err(ControlError::Closed) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn kill(&self) {
        // It may be gone already, but not reaped, so the pid is still its own.
        if let Err(errno) = rustix::process::kill_process(self.pid, Signal::KILL) {
            tracing::debug!("cannot kill the vm process: {errno}");
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }
}

/// The main function of the vm process.
pub fn enter() -> ExitCode {
    // Executed through /proc/self/exe, it would be called "exe".
    let _ = rustix::thread::set_name(c"podvisor-vm");
    seccomp::jail::close_inherited();
    let socket = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("podvisor: The vm process has no socket: {error}");
            return ExitCode::FAILURE;
        }
    };
    let report_fd = socket.as_raw_fd();
    let setup = Setup {
        log: crate::logging::init_by_name,
        hook: Arc::new(move |role| {
            restrict(role, report_fd).map_err(|source| ThreadSetupError { role, source })
        }),
    };
    vmm::process::main(socket, setup)
}

/// Restricts the calling thread to what its role needs; the first one gives up the rest of the
/// process's privileges before.
fn restrict(role: ThreadRole, report_fd: RawFd) -> Result<(), Box<dyn Error + Send + Sync>> {
    let role = match role {
        ThreadRole::EventLoop => {
            seccomp::jail::enter()?;
            seccomp::violation::report_to(report_fd)?;
            Role::Process
        }
        ThreadRole::Vcpu => Role::Vcpu,
        ThreadRole::Block => Role::Block,
        ThreadRole::Net => Role::Net,
        ThreadRole::Device => Role::Device,
    };
    Ok(seccomp::install(role)?)
}
