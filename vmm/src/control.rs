//! The wire between launcher and vm process: JSON messages on a `SOCK_SEQPACKET` socket pair, one
//! message a packet, descriptors as `SCM_RIGHTS` of the first one.
//!
//! The launcher sends [`Command`]s, the vm process sends [`Event`]s. The first command is
//! [`Command::Prepare`], the second [`Command::Create`]; the vm process answers [`Event::Running`] (or `Paused`) once vCPUs can run.
//! Losing the socket ends the vm process; the launcher learns how from its wait status.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use devices::virtio::DeviceStats;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::arch::cpu::HostCpu;
pub use crate::crash::CrashReport;
use crate::plan::MachinePlan;
use crate::trace::Mark;

/// Largest message, bytes; a plan with a 64 KiB command line and 31 devices is far below.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// Most descriptors with one message (the kernel's `SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// Launcher to vm process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "command")]
pub enum Command {
    /// Make with KVM, whose descriptor comes with this message, what can be made before a plan is known.
    Prepare,
    /// Build the machine from the plan and the descriptors that come with this message, and run
    /// it unless the plan says to start paused.
    Create {
        /// The machine.
        plan: Box<MachinePlan>,
        /// What each descriptor is, in order.
        fds: Vec<FdRole>,
        /// What KVM can show guests of the host's processor.
        host_cpu: HostCpu,
        /// End the run at a guest reset instead of restarting in place.
        exit_on_reboot: bool,
        /// Send [`Event::BootTrace`].
        boot_trace: bool,
        /// No file needs to become larger than this, bytes; none if there is no telling.
        file_size_limit: Option<u64>,
    },
    /// Stop the vCPUs and the devices.
    Pause,
    /// Undo [`Command::Pause`].
    Resume,
    /// Press the ACPI power button.
    PowerButton,
    /// Reset the machine in place.
    Reset,
    /// End the vm process now.
    Stop,
    /// Ask for [`Event::Stats`].
    Stats,
    /// Set the link state of a NIC.
    SetLink {
        /// Interface name.
        nic: String,
        /// New state.
        up: bool,
    },
}

/// What a descriptor sent with [`Command::Create`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "fd")]
pub enum FdRole {
    /// Kernel image.
    Kernel,
    /// Initial RAM disk.
    Initrd,
    /// Image or block device of `disks[index]`.
    Disk {
        /// Index in the plan.
        index: usize,
    },
    /// TAP queue pair of `nics[index]`; repeated in queue order.
    Tap {
        /// Index in the plan.
        index: usize,
    },
    /// Connected, non-blocking stream socket of `nics[index]`, instead of TAP queues.
    Stream {
        /// Index in the plan.
        index: usize,
    },
    /// Where the serial console's input comes from (a terminal or a pipe).
    ConsoleInput,
    /// Where the serial console's output goes (a terminal, pipe or file).
    ConsoleOutput,
    /// Listening unix stream socket for the serial console; one client at a time.
    ConsoleListener,
    /// File that gets a copy of all console output.
    ConsoleLog,
}

/// vm process to launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum Event {
    /// The vCPUs run.
    Running,
    /// The vCPUs and devices stand still.
    Paused,
    /// The guest asked for a reset; with `exit_on_reboot` the run ends, else it restarted in place.
    Reset,
    /// The guest powered off. The last event of a run.
    GuestShutdown,
    /// The guest crashed. The last event of a run.
    GuestCrashed(CrashReport),
    /// The launcher said [`Command::Stop`]. The last event of a run.
    Stopped,
    /// The guest's panic device spoke but the guest goes on (crash kernel loaded).
    GuestPanicNotice,
    /// The machine cannot be built of this plan, kernel and disks on this host, and no other try
    /// will end otherwise. The last event of a run.
    Refused {
        /// The error chain, outermost first.
        causes: Vec<String>,
    },
    /// The vm process failed. The last event of a run.
    InternalError {
        /// The error chain, outermost first.
        causes: Vec<String>,
    },
    /// A thread made a system call that its filter forbids; the process dies of SIGSYS. Written by
    /// the signal handler itself.
    SeccompViolation {
        /// The thread's role.
        role: String,
        /// Number of the system call.
        syscall: u32,
    },
    /// The user typed the console's escape sequence to stop.
    ConsoleEscape,
    /// The steps of the start so far; sent if [`Command::Create`] asks for it, when the vCPUs run and
    /// again at the end.
    BootTrace {
        /// The steps in order.
        marks: Vec<Mark>,
    },
    /// Answer to [`Command::Stats`].
    Stats(Box<Stats>),
}

/// Counters of a running machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// CPU time of each vCPU thread, nanoseconds.
    pub vcpu_time_ns: Vec<u64>,
    /// Exits to user space of each vCPU.
    pub vcpu_exits: Vec<u64>,
    /// Guest RAM that has been touched, bytes.
    pub memory_resident: u64,
    /// By device name.
    pub devices: BTreeMap<String, DeviceStats>,
}

/// A message could not be sent or received.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The socket failed.
    #[error("Control socket failed")]
    Socket(#[source] io::Error),
    /// The peer closed the socket.
    #[error("Control socket closed by the peer")]
    Closed,
    /// A message is longer than [`MAX_MESSAGE`].
    #[error("Control message of more than {MAX_MESSAGE} bytes")]
    TooLong,
    /// A message is not what this version understands.
    #[error("Control message not understood")]
    Format(#[source] serde_json::Error),
}

/// Sends one message with descriptors.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ControlError> {
    let bytes = serde_json::to_vec(message).map_err(ControlError::Format)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(ControlError::TooLong);
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ControlError::TooLong);
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
    })
    .map(drop)
    .map_err(|errno| ControlError::Socket(errno.into()))
}

/// Waits for a message and tells its length in bytes; 0 at the end.
fn next_len(socket: BorrowedFd<'_>) -> Result<usize, ControlError> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
    rustix::io::retry_on_intr(|| {
        let none = &mut RecvAncillaryBuffer::default();
        rustix::net::recvmsg(socket, &mut [], none, flags)
    })
    .map(|message| message.bytes)
    .map_err(receive_error)
}

fn receive_error(errno: rustix::io::Errno) -> ControlError {
    match errno {
        rustix::io::Errno::CONNRESET => ControlError::Closed,
        errno => ControlError::Socket(errno.into()),
    }
}

/// Receives one message and the descriptors that came with it (close-on-exec).
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> Result<(T, Vec<OwnedFd>), ControlError> {
    // Most messages are small, and pages that were touched once stay.
    let mut bytes = vec![0; next_len(socket)?.min(MAX_MESSAGE)];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket.as_fd(),
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .map_err(receive_error)?;
    if received.bytes == 0 {
        return Err(ControlError::Closed);
    }
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    let message = serde_json::from_slice(&bytes[..received.bytes]).map_err(ControlError::Format)?;
    Ok((message, fds))
}
