//! What comes into the pod's step, and what comes of it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use bytes::Bytes;
use tracing::Level;
use vmm::control::{Notice, Reply};

use super::super::agent::AgentView;
use super::super::domain::{Facts, Identity};
use super::super::hotplug::{NewDisk, NewNic};
use crate::exit::Exit;
use crate::opener::{FileToGrow, ImageToOpen, NicToOpen, OpenedImage, OpenedNic};
use crate::supervise::{ClientCall, LauncherEvent, LifeEffect, LifeInput};

/// What virt-handler wants, or asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Ask {
    /// SyncVirtualMachine.
    Sync(Box<Wanted>),
    /// PauseVirtualMachine.
    Pause,
    /// UnpauseVirtualMachine.
    Unpause,
    /// ResetVirtualMachine.
    Reset,
    /// SoftRebootVirtualMachine.
    SoftReboot,
    /// ShutdownVirtualMachine.
    Shutdown,
    /// KillVirtualMachine.
    Kill,
    /// DeleteVirtualMachine.
    Delete,
    /// VirtualMachineMemoryDump to this file.
    Dump(PathBuf),
    /// GetDomain.
    Domain,
    /// GetDomainStats.
    Stats,
    /// The same for Prometheus.
    Metrics,
    /// GetGuestInfo.
    GuestInfo,
    /// The version of the guest's agent.
    AgentVersion,
    /// GetUsers.
    Users,
    /// GetFilesystems.
    Filesystems,
    /// Whether a probe of the guest's agent is to succeed whatever the agent does: if not, the answer is an error.
    ProbesArePaused,
    /// One did not succeed, for this reason.
    PingFailed(String),
}

/// The VMI of a SyncVirtualMachine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Wanted {
    pub(in super::super) identity: Identity,
    /// `spec.terminationGracePeriodSeconds`.
    pub(in super::super) grace_seconds: u64,
    /// `status.phase`.
    pub(in super::super) phase: String,
    /// The whole of it.
    pub(in super::super) vmi: Bytes,
    /// Probes of the guest's agent are to succeed.
    pub(in super::super) pause_probes: bool,
    /// Names of NICs, and whether the link of each is to be up.
    pub(in super::super) links: Vec<(String, bool)>,
    /// Disks that come and go, and are mounted.
    pub(in super::super) disks: Vec<NewDisk>,
    /// NICs that come, and whose interfaces are in the pod.
    pub(in super::super) nics: Vec<NewNic>,
    /// Names of NICs that are to go.
    pub(in super::super) absent: Vec<String>,
    /// Bytes that the images of volumes have room for.
    pub(in super::super) rooms: Vec<(String, u64)>,
    /// Why these cannot be told. No machine is made of such a VMI either.
    pub(in super::super) refused: Option<String>,
    /// The cluster wants no log of the serial console.
    pub(in super::super) no_serial_log: bool,
}

/// The answer to an [`Ask`]: a text, which is empty where nothing is to be said, or why not.
pub(in super::super) type Answer = Result<String, String>;

/// Why no machine can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Failure {
    pub(in super::super) text: String,
    /// Another attempt will end alike.
    pub(in super::super) is_final: bool,
}

/// Something that happened.
#[derive(Debug)]
pub(in super::super) enum Input {
    /// A client asks; the answer goes to `token`.
    Ask { token: u64, ask: Ask },
    /// What [`Effect::Prepare`] led to; the vm process has the machine if all is well.
    Prepared(Result<Prepared, Failure>),
    /// Of the vm process.
    Vm(LifeInput),
    /// A client of the control socket wants something.
    Call(ClientCall),
    /// Of the guest's agent.
    Agent(Box<AgentView>),
    /// Whether the agent set users' keys and passwords, or why not.
    CredentialsSet(Result<(), String>),
    /// What [`Effect::MakeDump`] led to, or why to nothing.
    DumpFile(Result<OwnedFd, String>),
    /// What [`Effect::OpenImage`] led to for the disk of this name, or why to nothing.
    Image(String, Result<(OpenedImage, Vec<OwnedFd>), String>),
    /// What [`Effect::Grow`] led to for the disk of this name: the bytes that its image has, or why not.
    Grown(String, Result<u64, String>),
    /// What [`Effect::OpenNic`] led to for the NIC of this name, or why to nothing.
    Nic(String, Result<(OpenedNic, Vec<OwnedFd>), String>),
    /// The pod is to end; the signal's name.
    Stop(String),
    /// Virt-handler knows all that was published, or will not.
    Delivered,
    /// Time has passed.
    Tick,
}

/// A machine that the vm process has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Prepared {
    pub(in super::super) facts: Facts,
    /// A reset of the guest ends the machine.
    pub(in super::super) exit_on_reboot: bool,
}

/// What to do next.
#[derive(Debug)]
pub(in super::super) enum Effect {
    /// Answer a client.
    Answer { token: u64, answer: Answer },
    /// Have a machine made of this VMI.
    Prepare(Box<Wanted>),
    /// Have this file made, for a dump.
    MakeDump(PathBuf),
    /// Have the image of the disk of this name opened.
    OpenImage(String, ImageToOpen),
    /// Have the image of the disk of this name made larger.
    Grow(String, FileToGrow),
    /// Have the TAP of the NIC of this name opened.
    OpenNic(String, NicToOpen),
    /// For the vm process.
    Vm(LifeEffect),
    /// Answer a client of the control socket.
    Reply { client: u64, reply: Reply },
    /// Tell all clients of the control socket.
    Broadcast(Notice),
    /// And that the machine has ended.
    Ended(LauncherEvent),
    /// Tell virt-handler of the domain.
    Publish {
        kind: &'static str,
        domain: String,
        /// It is gone.
        is_last: bool,
    },
    /// Have virt-handler tell people.
    Warn {
        reason: &'static str,
        message: String,
    },
    /// Say something to the log.
    Log(Level, String),
    /// The end of this process.
    Exit(Exit),
}

impl Effect {
    pub(super) fn info(text: impl Into<String>) -> Self {
        Self::Log(Level::INFO, text.into())
    }

    pub(super) fn warn(text: impl Into<String>) -> Self {
        Self::Log(Level::WARN, text.into())
    }

    pub(super) fn error(text: impl Into<String>) -> Self {
        Self::Log(Level::ERROR, text.into())
    }
}
