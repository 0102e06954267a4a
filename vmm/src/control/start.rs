//! The first two messages of the launcher.

use serde::{Deserialize, Serialize};

use crate::arch::cpu::HostCpu;
use crate::plan::MachinePlan;

/// The first message. `/dev/kvm` comes with it, of which can be made what can be made before a plan is
/// known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The launcher's [`VERSION`](super::VERSION).
    pub version: u32,
}

/// The second message: build the machine from the plan and the descriptors that come with this, and run it
/// unless the plan says to start paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Create {
    /// The machine.
    pub plan: MachinePlan,
    /// What each descriptor is, in order.
    pub fds: Vec<FdRole>,
    /// What KVM can show guests of the host's processor.
    pub host_cpu: HostCpu,
    /// Kernel command line, where the plan says that the kernel is on a disk.
    pub cmdline: Option<String>,
    /// End the run at a guest reset instead of restarting in place.
    pub exit_on_reboot: bool,
    /// Send [`Event::BootTrace`](super::Event::BootTrace).
    pub boot_trace: bool,
    /// A machine from a snapshot may have other MAC addresses than its guest knows.
    pub new_mac: bool,
}

/// What a descriptor sent with [`Create`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "fd")]
pub enum FdRole {
    /// Kernel image.
    Kernel {
        /// What it is called in messages.
        name: String,
    },
    /// Initial RAM disk.
    Initrd,
    /// Firmware.
    Firmware {
        /// What it is called in messages.
        name: String,
    },
    /// State file of the snapshot that the machine is restored from; with [`FdRole::SnapshotRam`].
    SnapshotState,
    /// Its RAM file.
    SnapshotRam,
    /// Empty file that gets RAM and registers of a guest that crashed.
    CrashDump,
    /// The host's side of a device; repeated in the order that the device's options call for. Of a device of the host
    /// ([`HostDevicePlan`](crate::plan::HostDevicePlan)) the VFIO device, then its group.
    Device {
        /// The device's name.
        name: String,
    },
    /// The VFIO container that the groups of all host devices are in, with its IOMMU type set.
    VfioContainer,
    /// Where the serial console's input comes from (a terminal or a pipe).
    ConsoleInput,
    /// Where the serial console's output goes (a terminal, pipe or file).
    ConsoleOutput,
    /// Listening unix stream socket for the serial console; one client at a time.
    ConsoleListener,
    /// File that gets a copy of all console output.
    ConsoleLog,
    /// Listening stream socket for a debugger, which does not block; the machine waits for its first one.
    Debugger,
}
