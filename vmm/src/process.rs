//! The vm process: receives plan and descriptors, builds the machine, serves its events on this
//! one thread until the guest or the launcher ends it.

mod deadlines;
mod event_loop;
mod hardware;
mod inputs;
mod life;
mod operator;
mod sources;

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use devices::thread::{ThreadHook, ThreadRole};
use devices::vfio::OpenError;
use thiserror::Error;

use self::event_loop::Process;
use self::inputs::sort_fds;
use crate::control::{self, ControlError, Create, Event, Hello, MachineState, VERSION};
use crate::early;
use crate::kvm::{Hypervisor, KvmError};
use crate::machine::BuildError;
use crate::memory::MemoryError;
use crate::panics;
use crate::shortage::Shortage;
use crate::snapshot::SnapshotError;
use crate::trace;

/// Why the vm process failed.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The launcher broke the protocol or went away.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The launcher is of another version.
    #[error(
        "The launcher speaks version {theirs} of the protocol, this vm process version {VERSION}"
    )]
    Version {
        /// The launcher's version.
        theirs: u32,
    },
    /// The descriptors do not match the plan.
    #[error("The launcher sent no descriptor for the {what}")]
    MissingFd {
        /// What is missing.
        what: String,
    },
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The snapshot to restore from.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A device of the host.
    #[error(transparent)]
    HostDevice(#[from] OpenError),
    /// The machine.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// Descriptors of the event loop.
    #[error("Cannot make an eventfd")]
    Epoll(#[source] io::Error),
    /// The event loop.
    #[error("Cannot wait for events")]
    Watch(#[source] event_manager::Error),
    /// The steward.
    #[error("Cannot start the steward thread")]
    Steward(#[source] io::Error),
    /// The thread that works on the machine.
    #[error("Cannot start the operator thread")]
    Operator(#[source] io::Error),
    /// The debugger's thread.
    #[error("Cannot start the debugger's thread")]
    Debugger(#[source] io::Error),
    /// The number of descriptors could not be limited.
    #[error("Cannot limit the number of open files")]
    Limit(#[source] io::Error),
    /// The thread could not be restricted.
    #[error(transparent)]
    Restrict(#[from] devices::thread::ThreadSetupError),
}

impl ProcessError {
    fn missing(what: &str) -> Self {
        let what = what.to_owned();
        Self::MissingFd { what }
    }

    /// What the host, or a limit, has too little of, if it is that.
    fn shortage(&self) -> Option<Shortage> {
        match self {
            // A transparent error hides what it is from its chain.
            Self::Control(error) => Shortage::behind(error),
            error => Shortage::behind(error),
        }
    }

    /// Whether the fault is in what was asked for: the plan, the kernel or a disk image.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Snapshot(error) | Self::Build(BuildError::Snapshot(error)) => error.is_refusal(),
            Self::HostDevice(OpenError::Unfit { .. }) => true,
            Self::Build(BuildError::Boot { source, .. }) => source.is_refusal(),
            Self::Build(BuildError::Cpu(error)) => error.is_refusal(),
            Self::Build(BuildError::Device(error)) => error.is_refusal(),
            _ => false,
        }
    }

    /// The last event of a run that ends so.
    fn into_event(self) -> Event {
        let causes = causes(&self);
        if self.is_refusal() {
            return Event::Refused { causes };
        }
        match self.shortage() {
            Some(of) => Event::Shortage { of, causes },
            None => Event::InternalError { causes },
        }
    }
}

/// What the binary gives to the vm process beside the socket.
pub struct Setup {
    /// Allows the process so many open descriptors and no more.
    pub limit_descriptors: fn(u64) -> io::Result<()>,
    /// Restricts each thread. Called with [`ThreadRole::EventLoop`] on this one before anything is
    /// received, and with [`ThreadRole::Machine`] or [`ThreadRole::DebuggedMachine`] when the rings of the plan's disks
    /// are made; there is no other thread then, and later ones inherit what it does.
    pub hook: ThreadHook,
}

/// Runs the vm process with its end of the control socket; whether its guest ended and the launcher
/// was told.
pub fn main(socket: OwnedFd, setup: Setup) -> bool {
    trace::begin();
    early::leave_to_launcher();
    let socket = Arc::new(socket);
    panics::report(Some(socket.clone()));
    match serve(&socket, setup) {
        Ok(()) => true,
        // Nobody is left to tell.
        Err(ProcessError::Control(ControlError::Closed)) => false,
        Err(error) => {
            let last = error.into_event().with(MachineState::Ended);
            let _ = control::send(socket.as_fd(), &last, &[]);
            false
        }
    }
}

/// The error's chain, outermost first, without repetitions by transparent wrappers.
fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut causes = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        next = cause.source();
    }
    causes
}

/// Receives the hypervisor.
fn greet(socket: &OwnedFd) -> Result<Hypervisor, ProcessError> {
    let (Hello { version }, mut fds) = control::receive(socket.as_fd())?;
    if version != VERSION {
        return Err(ProcessError::Version { theirs: version });
    }
    let kvm = fds.pop().ok_or_else(|| ProcessError::MissingFd {
        what: "hypervisor".to_owned(),
    })?;
    Ok(Hypervisor::open(kvm)?)
}

/// Runs to the end, of which the launcher has been told if there is no error.
fn serve(socket: &OwnedFd, setup: Setup) -> Result<(), ProcessError> {
    (setup.hook)(ThreadRole::EventLoop)?;
    trace::mark("jail");
    let hypervisor = greet(socket)?;
    trace::mark("KVM");
    let (create, fds) = control::receive::<Create>(socket.as_fd())?;
    trace::mark("plan received");
    (setup.limit_descriptors)(create.plan.descriptors()).map_err(ProcessError::Limit)?;
    let inputs = sort_fds(hypervisor, create, fds, &setup.hook)?;
    Process::new(socket.as_fd(), inputs, setup.hook)?.run()
}
