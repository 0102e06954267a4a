//! The vm process: a fork of the launcher that has read nothing yet, with nothing but a socket.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use devices::thread::ThreadSetupError;
use rustix::net::sockopt::{self, Timeout};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit, setrlimit};
use seccomp::jail::{self, User};
use serde::Serialize;
use thiserror::Error as ThisError;
use vmm::control::{self, ControlError, Create, Hello, Report, VERSION};
use vmm::placement::REALTIME_PRIORITY;
use vmm::plan::MachinePlan;
use vmm::process::Setup;

use super::restrict::restrict_thread;
use crate::resources::{self, Descriptors};

/// A vm process that does not take the machine for so long gets none.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The vm process cannot be started.
#[derive(Debug, ThisError)]
pub enum VmProcessError {
    /// No socket pair.
    #[error("Cannot make a socket pair for the vm process")]
    Socket(#[source] io::Error),
    /// No process.
    #[error("Cannot fork the vm process")]
    Fork(#[source] io::Error),
    /// The first messages did not get through.
    #[error("Cannot hand the machine to the vm process")]
    Create(#[source] ControlError),
}

/// A running vm process. Losing the socket ends it.
#[derive(Debug)]
pub struct VmProcess {
    socket: OwnedFd,
    pid: Pid,
    user: Option<User>,
}

impl VmProcess {
    /// Starts a vm process of this name that will be `user`, or what the launcher is.
    pub fn spawn(name: &CStr, user: Option<User>) -> Result<Self, VmProcessError> {
        let (ours, theirs) = control::pair().map_err(VmProcessError::Socket)?;
        sockopt::set_socket_timeout(&ours, Timeout::Send, Some(SEND_TIMEOUT))
            .map_err(|errno| VmProcessError::Socket(errno.into()))?;
        let parent = rustix::process::getpid();
        let pid = jail::fork(theirs, || enter(name, user, parent)).map_err(VmProcessError::Fork)?;
        Ok(Self {
            socket: ours,
            pid,
            user,
        })
    }

    /// Its socket and its process, for somebody else to watch.
    pub fn into_parts(self) -> (OwnedFd, Pid) {
        (self.socket, self.pid)
    }

    /// Hands over the hypervisor, with which the vm process has something to do until there is a
    /// machine.
    pub fn prepare(&self, kvm: BorrowedFd<'_>) -> Result<(), VmProcessError> {
        self.hand_over(&Hello { version: VERSION }, &[kvm])
    }

    /// Lets it schedule real-time vCPUs and lock guest RAM, if the machine is to have that. Where this process may not raise
    /// limits, those of the host hold, and the vm process tells what it lacks.
    fn raise_limits(&self, plan: &MachinePlan) {
        let priority = match plan.placement.realtime {
            0 => 0,
            _ => u64::from(REALTIME_PRIORITY),
        };
        for (resource, wanted) in [
            (Resource::Rtprio, priority),
            (Resource::Memlock, resources::locked_memory(plan)),
        ] {
            // It has those of this process.
            let limit = getrlimit(resource);
            if limit.current.is_none_or(|limit| wanted <= limit) {
                continue;
            }
            let at_least = |limit: Option<u64>| limit.map(|limit| limit.max(wanted));
            let limit = Rlimit {
                current: at_least(limit.current),
                maximum: at_least(limit.maximum),
            };
            if let Err(errno) = prlimit(Some(self.pid), resource, limit) {
                tracing::debug!("cannot raise a limit of the vm process: {errno}");
            }
        }
    }

    /// Hands over the machine: the second message and all descriptors. A vm process that ended
    /// before is not an error: it said why, and `receive` tells.
    pub fn create(&self, create: &Create, descriptors: &Descriptors) -> Result<(), VmProcessError> {
        self.raise_limits(&create.plan);
        self.hand_over(create, &descriptors.fds())
    }

    fn hand_over(
        &self,
        message: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), VmProcessError> {
        match control::send(self.socket.as_fd(), message, fds) {
            Err(ControlError::Closed) => Ok(()),
            sent => sent.map_err(VmProcessError::Create),
        }
    }

    /// The next report; none when the vm process closed its end.
    pub(super) fn receive(&self) -> Result<Option<Report>, ControlError> {
        match control::receive(self.socket.as_fd()) {
            Ok((report, _)) => Ok(Some(report)),
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

    /// The user that it became, if not the launcher's.
    pub(super) fn user(&self) -> Option<User> {
        self.user
    }
}

/// The main function of the vm process: whether it could say how it ended.
fn enter(name: &CStr, user: Option<User>, parent: Pid) -> bool {
    let _ = rustix::thread::set_name(name);
    let socket = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => socket,
        Err(error) => {
            crate::report::print(&format!("The vm process has no socket: {error}"));
            return false;
        }
    };
    // Under KubeVirt nobody else may raise it.
    let limit = getrlimit(Resource::Memlock);
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(errno) = setrlimit(Resource::Memlock, all) {
        tracing::debug!("cannot raise the limit on locked memory: {errno}");
    }
    let report_fd = socket.as_raw_fd();
    let setup = Setup {
        limit_descriptors: |count| jail::limit_descriptors(count).map_err(io::Error::other),
        hook: Arc::new(move |role| {
            restrict_thread(role, user, parent, report_fd)
                .map_err(|source| ThreadSetupError { role, source })
        }),
    };
    let could_say = vmm::process::main(socket, setup);
    crate::logging::tell_lost();
    could_say
}
