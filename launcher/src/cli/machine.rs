//! What says which machine is run, and how.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::Args;
use devices::virtio::vsock::{MAX_CID, MIN_CID};

use super::DEFAULT_INTERFACE;
use super::values::{bytes, cmdline, forward, host_device, id, named_port, unix_path, volume};
use crate::logging::{LogFormat, LogLevel};
use crate::network::Forward;
use crate::plan::{PlanOptions, PortTarget};
use crate::resources::{ConsoleTarget, DebuggerTarget};
use crate::vmi::HostAddress;

/// Most processors of a guest, as clap counts.
pub(super) const MAX_VCPUS: i64 = vmm::layout::MAX_VCPUS as i64;

/// Addresses of vsock devices, as clap counts.
const CIDS: RangeInclusive<i64> = MIN_CID as i64..=MAX_CID as i64;

/// What a machine of a disk image has besides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "For a disk image without a VMI")]
pub struct DiskArgs {
    /// Processors [default: 2].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=MAX_VCPUS))]
    pub cpus: Option<u32>,
    /// RAM [default: 2Gi].
    #[arg(long, value_name = "QUANTITY")]
    pub memory: Option<String>,
    /// User that cloud-init makes in the guest, who may become root [default: the image's own].
    #[arg(long, value_name = "NAME", conflicts_with = "cloud_init")]
    pub user: Option<String>,
    /// Public keys that this user can log in with; may be repeated.
    #[arg(long, value_name = "FILE", conflicts_with = "cloud_init")]
    pub ssh_key: Vec<PathBuf>,
    /// User data for cloud-init, in place of user and keys.
    #[arg(long, value_name = "FILE")]
    pub cloud_init: Option<PathBuf>,
    /// Write to the image: what the guest writes is gone with the machine otherwise.
    #[arg(long)]
    pub persistent: bool,
    /// No network, for which passt is needed: guest and host share nothing but the disk.
    #[arg(long, visible_alias = "share-nothing")]
    pub no_network: bool,
}

/// A machine.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// VirtualMachineInstance, VirtualMachine, replica set or pool in YAML or JSON, by itself, in a list or
    /// among several documents, or a directory of them; `-` for standard input; the environment variable
    /// STANDALONE_VMI holds it if no file is given. Or a disk image, for which `podvisor new` prints the VMI.
    pub vmi: Option<PathBuf>,
    /// What a disk image needs of a VMI.
    #[command(flatten)]
    pub extras: DiskArgs,
    /// Make the disk of an image without a VMI this large, for this machine only: the guest sees more room behind what is there.
    #[arg(long, value_name = "QUANTITY", value_parser = bytes)]
    pub size: Option<u64>,
    /// The machine of this name, where the file has several; the name of the machine of a disk image.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Instance types and preferences that VirtualMachines refer to, and the claims, DataVolumes, DataSources and snapshots
    /// that name them, in YAML or JSON, or a directory of them; may be repeated.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub beside: Vec<PathBuf>,
    /// Refuse what would be adapted, such as a SATA disk that becomes a virtio one.
    #[arg(long)]
    pub strict: bool,
    /// Kernel image, in place of firmware.kernelBoot.container.kernelPath.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk, in place of firmware.kernelBoot.container.initrdPath.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Start this firmware instead of a kernel: not yet.
    #[arg(long, value_name = "FILE", hide = true, conflicts_with_all = ["kernel", "initrd", "cmdline", "boot_entry"])]
    pub firmware: Option<PathBuf>,
    /// Boot this entry of the disk's boot loader instead of its default: its id or title, as `image inspect`
    /// prints them.
    #[arg(long, value_name = "NAME")]
    pub boot_entry: Option<String>,
    /// Kernel command line, in place of firmware.kernelBoot.kernelArgs or of the boot entry's options.
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true, value_parser = cmdline)]
    pub cmdline: Option<String>,
    /// Where a volume's raw image, block device or, with qcow2: before its path, qcow2 image is, what a container
    /// disk has in it, or the directory that a ConfigMap and the like are made of; may be repeated.
    #[arg(long = "volume", value_name = "NAME=PATH", value_parser = volume)]
    pub volumes: Vec<(String, PathBuf)>,
    /// The pod's interface for the pod network [default: eth0].
    #[arg(long, value_name = "NAME")]
    pub pod_interface: Option<String>,
    /// Let a port of this host in behind passt, as that port of the guest; may be repeated. Then all ports that the
    /// VMI does not list stay closed; those of a disk image without a VMI always do.
    #[arg(long, value_name = "HOST:GUEST[/udp]", value_parser = forward)]
    pub publish: Vec<Forward>,
    /// Drop frames that the guest sends from another MAC address than its NIC's.
    #[arg(long)]
    pub mac_spoof_check: bool,
    /// Write the packets of this interface of the VMI to this file, as pcapng: those that the guest receives and sends, and
    /// what became of those that the NIC answers or drops. The file and FILE.1 are used in turn, for 64 MiB each; may be
    /// repeated.
    #[arg(long, value_name = "NIC=FILE", value_parser = volume)]
    pub pcap: Vec<(String, PathBuf)>,
    /// Give the guest a channel to its agent (org.qemu.guest_agent.0), whose host end is this socket
    /// (unix:PATH); one client at a time.
    #[arg(long, value_name = "unix:PATH", value_parser = unix_path)]
    pub guest_agent: Option<PathBuf>,
    /// Give the guest a virtio console (hvc0): on a socket (unix:PATH), one client at a time, or its output only in a file
    /// (file:PATH, 16 MiB at most).
    #[arg(long, value_name = "TARGET")]
    pub virtio_console: Option<PortTarget>,
    /// Give the guest a vsock device with this address, from 3 up, which no other on this host may have. A VMI with
    /// autoattachVSOCK has one anyway, with the first address that is free if none is said.
    #[arg(long, value_name = "CID", value_parser = clap::value_parser!(u32).range(CIDS))]
    pub vsock_cid: Option<u32>,
    /// Which device of the host is the one of this name in hostDevices, gpus or the interfaces with sriov: its PCI address
    /// (0000:3b:00.0), or the UUID of a mediated device. In a pod device plugins say it by the environment. May be repeated.
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = host_device)]
    pub host_device: Vec<(String, HostAddress)>,
    /// Let no port in behind passt, not even those of the VMI.
    #[arg(long, conflicts_with = "publish", hide = true)]
    pub no_publish: bool,
    /// Give the guest a port of this name, whose host end is this socket; may be repeated.
    #[arg(long, value_name = "NAME=unix:PATH", value_parser = named_port, hide = true)]
    pub port: Vec<(String, PathBuf)>,
    /// Have what the guest writes to a volume that is not written to in this file, which is empty.
    #[arg(long, value_name = "NAME=PATH", value_parser = volume, hide = true)]
    pub overlay: Vec<(String, PathBuf)>,
    /// Give the machine this many PCI slots for devices that come and go while it runs (`ctl attach`).
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub hotplug_slots: u8,
    /// End the run when the guest resets, in place of rebootPolicy: Terminate.
    #[arg(long)]
    pub exit_on_reboot: bool,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Where the serial console goes: stdio, none, file:PATH (16 MiB at most) or unix:PATH
    /// [default: stdio].
    #[arg(long, value_name = "WHERE")]
    pub console: Option<ConsoleTarget>,
    /// Listen for commands, one JSON object a line, on this socket (unix:PATH).
    #[arg(long, value_name = "unix:PATH", value_parser = unix_path)]
    pub control: Option<PathBuf>,
    /// Let clients of the control socket name files below this directory, to be opened while the
    /// machine runs; may be repeated.
    #[arg(long, value_name = "DIRECTORY", requires = "control")]
    pub open_below: Vec<PathBuf>,
    /// Let clients of the control socket name TAPs of the pod's network, to be opened or made while the machine
    /// runs (`ctl attach NAME tap:TAP`).
    #[arg(long, requires = "control")]
    pub open_taps: bool,
    /// Print what would be opened and built, as `podvisor plan` does, and run nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Return when the machine runs, and leave it to itself. Its messages and its console are in files ($XDG_STATE_HOME/podvisor,
    /// or ~/.local/state/podvisor).
    #[arg(long)]
    pub detach: bool,
    /// This is the run that is left to itself.
    #[arg(long, hide = true)]
    pub detached: bool,
    /// Go on from the snapshot that `ctl snapshot` has written to this directory.
    #[arg(long, value_name = "DIR")]
    pub restore: Option<PathBuf>,
    /// With --restore: let NICs have the MAC addresses of this pod, or of the VMI, where the snapshot's guest knew
    /// others. The guest learns them when its driver looks, as Linux does when it is bound anew.
    #[arg(long, requires = "restore")]
    pub new_mac: bool,
    /// Write the guest's memory and registers to this file if it crashes: an ELF core for gdb and crash. It is made
    /// at the start, and stays empty if nothing crashes.
    #[arg(long, value_name = "FILE")]
    pub crash_dump: Option<PathBuf>,
    /// The ELF file of the guest's kernel: the report of a crash names the function where it happened, if the kernel is
    /// where the file says (nokaslr).
    #[arg(long, value_name = "VMLINUX")]
    pub symbols: Option<PathBuf>,
    /// Let gdb debug the guest's kernel, on this socket (unix:PATH, or 127.0.0.1:PORT for all users of this host). The
    /// machine stands still before its first instruction until gdb lets it go on.
    #[arg(long, value_name = "WHERE")]
    pub gdb: Option<DebuggerTarget>,
    /// Write where the time of the start goes, podvisor's and, by what it says on its console, the guest's: a drawing if
    /// the name ends in .svg, else JSON.
    #[arg(long, value_name = "FILE")]
    pub boot_trace: Option<PathBuf>,
    /// User that the machine runs as, by number [default: who called sudo, else 107].
    ///
    /// Only for a launcher that runs as root; any other shares its own user with the machine.
    #[arg(long, value_name = "UID", requires = "gid", value_parser = id())]
    pub uid: Option<u32>,
    /// Group that the machine runs as, by number.
    #[arg(long, value_name = "GID", requires = "uid", value_parser = id())]
    pub gid: Option<u32>,
    /// Stop when this process, which has started this one, is gone.
    #[arg(long, value_name = "PID", hide = true, value_parser = clap::value_parser!(i32).range(1..))]
    pub end_with: Option<i32>,
    /// Least severity of messages on standard error.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: LogLevel,
    /// Form of messages on standard error.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

impl MachineArgs {
    /// The arguments that the plan takes.
    pub fn plan_options(&self) -> PlanOptions {
        PlanOptions {
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            firmware: self.firmware.clone(),
            boot_entry: self.boot_entry.clone(),
            volumes: self.volumes.clone(),
            overlays: self.overlay.clone(),
            sizes: Vec::new(),
            pod_interface: (self.pod_interface.clone())
                .unwrap_or_else(|| DEFAULT_INTERFACE.to_owned()),
            publish: (self.no_publish || !self.publish.is_empty()).then(|| self.publish.clone()),
            mac_spoof_check: self.mac_spoof_check,
            captures: self.pcap.clone(),
            exit_on_reboot: self.exit_on_reboot,
            guest_agent: self.guest_agent.clone(),
            virtio_console: self.virtio_console.clone(),
            ports: self.port.clone(),
            vsock_cid: self.vsock_cid,
            host_devices: self.host_device.clone(),
            hotplug_slots: self.hotplug_slots,
            removable_nics: false,
            without_hotpluggable: false,
        }
    }
}
