//! What can end a command early.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vmm::control::VERSION;
use vmm::shortage::Shortage;

use super::bench_boot::BenchBootError;
use super::customize::CustomizeError;
use super::detach::DetachError;
use super::explain;
use super::ssh::SshError;
use crate::exit::Exit;
use crate::network::NetworkError;
use crate::opener::OpenerError;
use crate::report;
use crate::resources::{BootDiskError, ResourceError};
use crate::supervise::{ChooseUserError, RestrictError, VmProcessError};
use crate::vmi::{ReadDocumentError, Report};

/// A command cannot be done.
#[derive(Debug, Error)]
pub enum CommandError {
    /// No VMI was given.
    #[error("No VirtualMachineInstance was given")]
    NoVmi,
    /// A VMI, a disk image, a key or the like cannot be read from where it is said to be.
    #[error("Cannot read {file}")]
    Input {
        /// File name, `-`, or the environment variable.
        file: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The VMI is not a document.
    #[error("The VirtualMachineInstance {file} is not YAML or JSON")]
    Document {
        /// File name, `-`, or the environment variable.
        file: String,
        /// The cause.
        #[source]
        source: ReadDocumentError,
    },
    /// The VMI, or the VMI and the options together, cannot be honoured.
    #[error("The VirtualMachineInstance {file} cannot be honoured:\n{report}")]
    Refused {
        /// File name, `-`, or the environment variable.
        file: String,
        /// All errors.
        report: Report,
    },
    /// What should be a disk is none.
    #[error("{0:?} is no disk image, block device or unpacked container disk")]
    NoDisk(PathBuf),
    /// Options that say what a VMI says.
    #[error(
        "--cpus, --memory, --size, --user, --ssh-key, --cloud-init, --persistent and --no-network are for a disk image: \
         a VMI says these things itself"
    )]
    OnlyForDisks,
    /// Options that choose among documents.
    #[error("-f is for VMIs: a disk image has no instance type")]
    OnlyForVmis,
    /// The table of fields has no such field.
    #[error("A VMI has no field {0:?}")]
    NoSuchField(String),
    /// There are several machines, or none with the name asked for.
    #[error("{file} has {}", machines(names))]
    WhichMachine {
        /// File name, `-`, or the environment variable.
        file: String,
        /// Their names.
        names: Vec<String>,
    },
    /// A host resource is missing.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// No disk can be booted.
    #[error(transparent)]
    BootDisk(#[from] BootDiskError),
    /// A disk cannot be looked at.
    #[error("Cannot inspect the disk {path:?}")]
    Inspect {
        /// Where it is.
        path: PathBuf,
        /// The cause.
        #[source]
        source: BootDiskError,
    },
    /// The pod's network cannot be used.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The pod's network is not as it was.
    #[error("Cannot give the pod its network back")]
    Restore(#[source] NetworkError),
    /// The vm process cannot be started.
    #[error(transparent)]
    VmProcess(#[from] VmProcessError),
    /// The process that opens files cannot be started.
    #[error(transparent)]
    Opener(#[from] OpenerError),
    /// The options name a user that the vm process cannot become.
    #[error(transparent)]
    User(#[from] ChooseUserError),
    /// The launcher cannot restrict itself.
    #[error(transparent)]
    Restrict(#[from] RestrictError),
    /// Something that should always work does not.
    #[error("Cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Manual pages cannot be written.
    #[error("Cannot write manual pages to {directory:?}")]
    Man {
        /// Where to.
        directory: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The machine's console, what it said, or its guest's agent is nowhere to be found.
    #[error("The machine has no {what}")]
    NoEnd {
        /// Of what.
        what: &'static str,
        /// What to do.
        way_out: &'static str,
    },
    /// The console cannot be used.
    #[error("Cannot use the console at {path:?}")]
    Console {
        /// Its socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A program in the guest was not run, or failed.
    #[error("{program:?} in the guest: {why}")]
    Exec {
        /// The program.
        program: String,
        /// What became of it.
        why: String,
    },
    /// The control socket of a machine does not answer.
    #[error("Cannot talk to a machine at the control socket {path:?}")]
    Control {
        /// Path of the socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No machine of this user has the name.
    #[error("No machine called {0:?} runs")]
    NoSuchMachine(String),
    /// No machine of this user runs.
    #[error("No machine of this user runs")]
    NothingRuns,
    /// Each of these machines could be meant.
    #[error("Several machines run: {}", .0.join(", "))]
    WhichRunning(Vec<String>),
    /// The files of a snapshot cannot be made.
    #[error("Cannot write a snapshot to {directory:?}")]
    Snapshot {
        /// Where they should be.
        directory: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file of a dump cannot be made.
    #[error("Cannot write a dump to {path:?}")]
    Dump {
        /// Where it should be.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file of a boot trace cannot be made.
    #[error("Cannot make the boot trace's file {path:?}")]
    BootTrace {
        /// Where it should be.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The guest's kernel cannot be read for its symbols.
    #[error("Cannot read the symbols of {path:?}")]
    Symbols {
        /// What was given.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A machine does not do what it was told.
    #[error("The machine refused: {0}")]
    ControlRefused(String),
    /// A machine of another release.
    #[error("The machine speaks version {theirs} of the protocol, this podvisor version {VERSION}")]
    ControlVersion {
        /// The machine's version.
        theirs: String,
    },
    /// A disk was not customized.
    #[error(transparent)]
    Customize(#[from] CustomizeError),
    /// Starts were not timed.
    #[error(transparent)]
    BenchBoot(#[from] BenchBootError),
    /// A run is not left to itself.
    #[error(transparent)]
    Detach(#[from] DetachError),
    /// A guest is not reached.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// A command that there is not.
    #[error("No such command")]
    NoSuchCommand(#[source] serde_json::Error),
}

/// The machines that there are, in words; names are quoted, as they are the document's.
fn machines(names: &[String]) -> String {
    let names = names.iter().map(|name| format!("{name:?}"));
    match names.collect::<Vec<_>>().as_slice() {
        [] => "no machine".to_owned(),
        names => format!("the machines {}", names.join(", ")),
    }
}

impl CommandError {
    /// The exit status.
    pub fn exit(&self) -> Exit {
        if Shortage::behind(self).is_some() {
            return Exit::HostResource;
        }
        match self {
            Self::Customize(error) => error.exit(),
            Self::Network(NetworkError::Stopped) => Exit::Stopped,
            Self::NoVmi
            | Self::NoSuchField(_)
            | Self::NoDisk(_)
            | Self::OnlyForDisks
            | Self::OnlyForVmis
            | Self::WhichMachine { .. }
            | Self::Document { .. }
            | Self::Refused { .. }
            | Self::User(_)
            | Self::BootDisk(BootDiskError::Nothing { .. })
            | Self::NoSuchCommand(_)
            | Self::Detach(DetachError::NoFile)
            | Self::WhichRunning(_) => Exit::Refused,
            Self::Opener(OpenerError::Directory { .. })
            | Self::Resource(_)
            | Self::Inspect { .. }
            | Self::Network(_)
            | Self::Input { .. }
            | Self::Symbols { .. }
            | Self::NoSuchMachine(_)
            | Self::NothingRuns
            | Self::BenchBoot(BenchBootError::Plot { .. })
            | Self::BootTrace { .. }
            | Self::Snapshot { .. }
            | Self::Dump { .. }
            | Self::Man { .. }
            | Self::NoEnd { .. }
            | Self::Console { .. }
            | Self::Control { .. }
            | Self::Detach(_)
            | Self::Ssh(_) => Exit::HostResource,
            Self::Exec { .. } => Exit::GuestFailed,
            Self::BenchBoot(BenchBootError::Stopped) => Exit::Stopped,
            Self::Restore(_)
            | Self::VmProcess(_)
            | Self::Opener(_)
            | Self::BootDisk(_)
            | Self::Restrict(_)
            | Self::System { .. }
            | Self::BenchBoot(_)
            | Self::ControlRefused(_)
            | Self::ControlVersion { .. } => Exit::Internal,
        }
    }

    /// One paragraph that names the thing, the cause and the way out.
    pub fn paragraph(&self) -> String {
        let mut text = report::chain(self);
        let way_out = self.way_out();
        if !way_out.is_empty() {
            text.push_str(if text.ends_with('.') || text.contains('\n') {
                "\n"
            } else {
                ". "
            });
            text.push_str(way_out);
        }
        text
    }

    fn way_out(&self) -> &'static str {
        if let Some(shortage) = Shortage::behind(self) {
            return shortage.way_out();
        }
        match self {
            Self::NoVmi => {
                "Name a file, or - for standard input, or put the document into the environment \
                 variable STANDALONE_VMI."
            }
            Self::NoEnd { way_out, .. } => way_out,
            Self::NoSuchField(_) => "See `podvisor explain` for all fields.",
            Self::WhichMachine { .. } => "Choose one with --name.",
            Self::Symbols { .. } => "Name the kernel's ELF file (vmlinux) with its symbols.",
            Self::Input { .. }
            | Self::BootTrace { .. }
            | Self::Snapshot { .. }
            | Self::Dump { .. }
            | Self::Man { .. }
            | Self::Console { .. }
            | Self::Opener(OpenerError::Directory { .. }) => "Check the path and its permissions.",
            Self::Refused { .. } => explain::HINT,
            Self::User(_) => "Leave both options out, or start podvisor as root.",
            Self::BootDisk(_) => {
                "`podvisor image inspect` shows what is on a disk; --boot-entry chooses an entry, --kernel and \
                 firmware.kernelBoot bring a kernel that is not on it."
            }
            Self::Resource(error) => error.way_out(),
            Self::Network(error) => error.way_out(),
            Self::Customize(error) => error.way_out(),
            Self::Detach(error) => error.way_out(),
            Self::Ssh(error) => error.way_out(),
            Self::Restore(_) => "Recreate the pod.",
            Self::Control { .. } => {
                "Check that the machine runs and was started with this --control socket."
            }
            Self::NoSuchMachine(_) | Self::NothingRuns | Self::WhichRunning(_) => {
                "podvisor ctl list prints those that run; --vm takes a name, or the path of a --control socket."
            }
            _ => "",
        }
    }
}
