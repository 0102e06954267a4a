//! The command line; no logic.

mod machine;
mod read;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};
use clap_complete::Shell;

use self::machine::MAX_VCPUS;
pub use self::machine::{DiskArgs, MachineArgs, RunArgs};
pub use self::values::shortened;
use self::values::{duration, injection};
use crate::logging::{LogFormat, LogLevel};

/// The pod's interface, as Kubernetes names it.
pub const DEFAULT_INTERFACE: &str = "eth0";

/// Runs a KubeVirt VirtualMachineInstance as a KVM guest in this pod.
#[derive(Debug, Parser)]
#[command(name = "podvisor", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: CliCommand,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Run a machine until its guest powers off.
    ///
    /// Inherited descriptors are closed, but standard streams and those that an argument names as
    /// /dev/fd/N.
    ///
    /// Exit status: 0 the guest powered off; 1 internal error; 2 bad usage or a VMI that cannot be
    /// honoured; 3 the guest crashed; 4 stopped from outside; 5 a host resource is missing.
    Run(Box<RunArgs>),
    /// Print all errors of VMIs and the fields without effect, without touching the host.
    Validate(ValidateArgs),
    /// Print what becomes of a field of a VMI, or of all fields.
    Explain {
        /// Its path, or the end of it: spec.domain.devices.disks[].cache, disks.cache.
        field: Option<String>,
    },
    /// Print what `run` would open and build, as JSON.
    Plan(Box<MachineArgs>),
    /// Print a VMI for a disk image, the one that `run DISK` runs.
    New(NewArgs),
    /// Run a script in the guest of a disk image, and keep the image that it leaves, if asked to.
    ///
    /// The disk itself stays as it is. cloud-init in the guest runs the script as root; what the script prints is printed.
    ///
    /// Exit status: that of `run`, and 6 where the script failed or did not come to its end.
    Customize(CustomizeArgs),
    /// Start a machine again and again, and print how long it takes.
    ///
    /// From the execution of podvisor to the guest's first instruction, and to what its console says: of itself the
    /// kernel's first line and the start of init, if they are there, and each --until.
    BenchBoot(BenchBootArgs),
    /// Send a command to the control socket of a running machine.
    Ctl(CtlArgs),
    /// Go into the guest of a machine that `run DISK` has started, by SSH, once it answers.
    ///
    /// With a key of podvisor's own, which is made at its first use. Exit status: that of ssh.
    Ssh(SshArgs),
    /// Print what podvisor keeps on this computer for this user, and remove it.
    Cleanup(CleanupArgs),
    /// Look at disk images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Print what runs have prepared in this network namespace.
    #[command(subcommand)]
    Net(NetCommand),
    /// Print what this host or pod offers and lacks, and what each thing is needed for.
    ///
    /// Exit status: 0 a machine with a disk and the pod network would run; 5 it would not.
    CheckHost {
        /// Form of the answer.
        #[arg(short, long, value_name = "FORMAT", default_value = "text")]
        output: LogFormat,
    },
    /// Print the labels by which KubeVirt's scheduler would choose this node.
    ///
    /// Exit status: 0 there is KVM; 5 there is not.
    NodeInfo {
        /// Form of the answer.
        #[arg(short, long, value_name = "FORMAT", default_value = "text")]
        output: LogFormat,
    },
    /// Write manual pages of podvisor and its commands.
    Man {
        /// Where to, a directory that is there.
        directory: PathBuf,
    },
    /// Print what completes this command line in a shell, which is to read it.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the system call filters of the vm process and of the launcher.
    #[command(subcommand)]
    Seccomp(SeccompCommand),
}

/// What to do with a disk image.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Print format, size, partitions, file systems, operating system and boot entries of a disk.
    Inspect(ImageInspectArgs),
    /// List the images of a directory by age, and remove those that are old and that nobody uses.
    Gc(ImageGcArgs),
}

/// Arguments of `image inspect`.
#[derive(Debug, Args)]
pub struct ImageInspectArgs {
    /// A disk image or block device.
    pub disk: PathBuf,
    /// Form of the answer.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: LogFormat,
}

/// Arguments of `image gc`.
#[derive(Debug, Args)]
pub struct ImageGcArgs {
    /// Where the images (NAME.img, .raw, .qcow2, .qcow), or unpacked container disks, are.
    pub directory: PathBuf,
    /// How many of the newest stay.
    #[arg(long, value_name = "NUMBER")]
    pub keep: usize,
    /// Remove the others. Images that a machine has open or that another image there lies over stay.
    #[arg(long)]
    pub delete: bool,
    /// Form of the answer.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: LogFormat,
}

/// What to print of the network.
#[derive(Debug, Subcommand)]
pub enum NetCommand {
    /// Print guests' NICs: what was prepared, the leases given, what the end of the run restores.
    Show(NetShowArgs),
}

/// Arguments of `net show`.
#[derive(Debug, Args)]
pub struct NetShowArgs {
    /// Form of the answer.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: LogFormat,
    /// Where runs keep what they have prepared.
    #[arg(long, value_name = "DIRECTORY", default_value = crate::network::STATE_DIR)]
    pub state_dir: PathBuf,
}

/// What to print of the filters.
#[derive(Debug, Subcommand)]
pub enum SeccompCommand {
    /// Print each rule with its reason.
    Show {
        /// Only the rules of this role: process, machine, debugged_machine, vcpu, debugger, block, net, captured_net, balloon,
        /// console, vsock, device, launcher, restorer, opener, connector, bootdisk, preparer, monitor or service.
        #[arg(value_parser = role)]
        role: Option<String>,
    },
}

fn role(text: &str) -> Result<String, String> {
    let names = seccomp::Role::ALL.map(|role| role.name());
    if names.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("expected one of {}", names.join(", ")))
}

/// Arguments of `new`.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// A disk image, a block device, or the directory of an unpacked container disk.
    pub disk: PathBuf,
    /// Name of the machine [default: one of the image's].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The machine.
    #[command(flatten)]
    pub extras: DiskArgs,
}

/// Arguments of `customize`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["run", "user_data", "inject"]).required(true).multiple(true))]
pub struct CustomizeArgs {
    /// A disk image, a block device, or the directory of an unpacked container disk. Its system has cloud-init.
    pub disk: PathBuf,
    /// Script that the guest runs as root.
    #[arg(long, value_name = "SCRIPT")]
    pub run: Option<PathBuf>,
    /// User data for cloud-init in place of a script: whether cloud-init had errors is its status, and its log is printed.
    #[arg(long, value_name = "FILE", conflicts_with = "run")]
    pub user_data: Option<PathBuf>,
    /// Put a file into the guest, at this path, before the script runs; may be repeated, for 64 MiB in all.
    #[arg(long, value_name = "FILE:PATH", value_parser = injection)]
    pub inject: Vec<(PathBuf, String)>,
    /// Write what the disk is then to this new qcow2 image, without the guest's machine ID, SSH host keys and state of
    /// cloud-init.
    #[arg(long, value_name = "NEW.qcow2")]
    pub out: Option<PathBuf>,
    /// Time that the guest may take: seconds, or with m or h after the number, minutes or hours.
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = duration)]
    pub timeout: Duration,
    /// Processors.
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=MAX_VCPUS))]
    pub cpus: u32,
    /// RAM.
    #[arg(long, value_name = "QUANTITY", default_value = "2Gi")]
    pub memory: String,
    /// No network, for which passt is needed.
    #[arg(long)]
    pub no_network: bool,
    /// Append what the guest writes to its serial console to this file (16 MiB at most).
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// Form of the answer: what the script prints as it comes, or one JSON object in the end.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: LogFormat,
    /// Least severity of messages of the machine on standard error.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: LogLevel,
}

/// Arguments of `bench-boot`.
#[derive(Debug, Args)]
pub struct BenchBootArgs {
    /// Starts that are timed.
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub runs: u32,
    /// Text on the console that is timed, too; may be repeated. A machine is stopped when all were there, and without any
    /// runs to its end.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub until: Vec<String>,
    /// Another way to start such a guest, in turn with podvisor: a command for the shell, whose standard output is the
    /// guest's console, and which is killed with all that it has started.
    #[arg(long, value_name = "COMMAND")]
    pub compare: Option<String>,
    /// Draw all starts (SVG).
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Time that one start may take: seconds, or with m or h after the number, minutes or hours.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
    /// Form of the answer.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: LogFormat,
    /// The machine and its options, as `run` takes them; they come last.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "VMI [OPTION]..."
    )]
    pub run: Vec<OsString>,
}

/// Arguments of `validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// VirtualMachineInstances in YAML or JSON, `-` for standard input.
    #[arg(required = true)]
    pub vmis: Vec<PathBuf>,
    /// Instance types and preferences that VirtualMachines refer to, and the claims, DataVolumes, DataSources and snapshots
    /// that name them, in YAML or JSON, or a directory of them; may be repeated.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub beside: Vec<PathBuf>,
    /// Refuse what would be adapted, such as a SATA disk that becomes a virtio one.
    #[arg(long)]
    pub strict: bool,
    /// Form of the answer.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: LogFormat,
}

/// Arguments of `ssh`.
#[derive(Debug, Args)]
pub struct SshArgs {
    /// Name of the machine [default: the one machine of this user that runs].
    pub vm: Option<String>,
    /// User in the guest [default: that of `run --user`].
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// What is to be done there, in place of a shell.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Arguments of `cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Remove what no machine uses.
    #[arg(long)]
    pub delete: bool,
    /// Form of the answer.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: LogFormat,
}

/// Arguments of `ctl`.
#[derive(Debug, Args)]
pub struct CtlArgs {
    /// The machine: the name of its VMI, or the path of the socket given to `run --control` [default: the one machine of
    /// this user that runs].
    #[arg(long, value_name = "NAME|SOCKET")]
    pub vm: Option<String>,
    /// list (the machines of this user that run), events (as they happen, to the end of the run), pause, resume, powerButton, reboot, reset, stop, registers, stats, status, metrics [LABEL=VALUE...], setLink nic=NAME up=true|false,
    /// device name=NAME order=JSON, attach NAME IMAGE|tap:TAP [OPTION=VALUE...], detach NAME
    /// [seconds=NUMBER], snapshot DIR, dump FILE, console (of --console unix:PATH; Ctrl-] leaves it), console-log
    /// (what the guest has written there, of --console file:PATH and --detach), or
    /// exec PROGRAM [ARGUMENT...] (by the guest's agent: --guest-agent unix:PATH).
    pub command: String,
    /// What belongs to the command: NAME=VALUE, a device's name, an image, the directory of a snapshot, the file of
    /// a dump, a program and what it is given (behind -- where that begins with -).
    #[arg(value_name = "NAME=VALUE")]
    pub arguments: Vec<String>,
    /// End the machine once its snapshot is written.
    #[arg(long)]
    pub stop: bool,
    /// Form of the answers to `list` and `registers`; `metrics` are Prometheus' text, all others JSON.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: LogFormat,
}
