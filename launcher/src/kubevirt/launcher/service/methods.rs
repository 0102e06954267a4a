//! All methods, and what becomes of each (docs/kubevirt.md).

use super::super::super::pod::Ask;

/// What becomes of a call.
#[derive(Clone, Debug)]
pub(super) enum Method {
    /// Versions.
    Info,
    /// Always well.
    Ping,
    /// A VMI to make real.
    Sync,
    /// Asked of the pod.
    Ask(Ask),
    /// The same text always.
    Text(&'static str),
    /// Memory to a file.
    Dump,
    /// Counters, those that are wanted.
    VmStats,
    /// A program to run in the guest.
    Exec,
    /// Whether the guest's agent answers.
    GuestPing,
    /// File systems to freeze.
    Freeze,
    /// File systems to thaw.
    Unfreeze,
    /// Not done, in words for users.
    Refused(&'static str),
}

/// How the response looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `Response`.
    Plain,
    /// A message whose first field is a `Response`, and whose second may be a text.
    Text,
}

const NO_MIGRATION: &str = "podvisor cannot migrate machines yet; set evictionStrategy: None";
const NO_HOST_DEVICES: &str = "podvisor has no host devices";
const NO_CPU_HOTPLUG: &str = "podvisor cannot change the number of vCPUs of a running machine";
const NO_MEMORY_HOTPLUG: &str = "podvisor cannot change the memory of a running machine";
const NO_SEV: &str = "podvisor has no confidential machines (launchSecurity)";
pub(super) const NO_DIRTY_RATE: &str =
    "podvisor does not measure how fast a guest changes its memory";
const NO_SCREEN: &str = "podvisor's machines have no screen yet; use the serial console";
const NO_BACKUP: &str = "podvisor cannot back up disks yet";

/// As KubeVirt's client reads it: three numbers.
const QEMU_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Name, what becomes of it, and how its response looks.
type Entry = (&'static str, Method, Shape);

/// Done, or not.
const fn plain(name: &'static str, method: Method) -> Entry {
    (name, method, Shape::Plain)
}

/// Answered by the pod.
const fn ask(name: &'static str, ask: Ask) -> Entry {
    plain(name, Method::Ask(ask))
}

/// The same, with a text.
const fn tell(name: &'static str, ask: Ask) -> Entry {
    (name, Method::Ask(ask), Shape::Text)
}

/// Not done.
const fn refused(name: &'static str, reason: &'static str) -> Entry {
    plain(name, Method::Refused(reason))
}

/// The same where the response has more than that.
const fn refused_text(name: &'static str, reason: &'static str) -> Entry {
    (name, Method::Refused(reason), Shape::Text)
}

static CMD: [Entry; 36] = [
    plain("SyncVirtualMachine", Method::Sync),
    ask("PauseVirtualMachine", Ask::Pause),
    ask("UnpauseVirtualMachine", Ask::Unpause),
    plain("FreezeVirtualMachine", Method::Freeze),
    plain("UnfreezeVirtualMachine", Method::Unfreeze),
    ask("ResetVirtualMachine", Ask::Reset),
    ask("SoftRebootVirtualMachine", Ask::SoftReboot),
    ask("ShutdownVirtualMachine", Ask::Shutdown),
    ask("KillVirtualMachine", Ask::Kill),
    ask("DeleteVirtualMachine", Ask::Delete),
    refused("MigrateVirtualMachine", NO_MIGRATION),
    refused("SyncMigrationTarget", NO_MIGRATION),
    refused("CancelVirtualMachineMigration", NO_MIGRATION),
    refused("SignalTargetPodCleanup", NO_MIGRATION),
    refused("FinalizeVirtualMachineMigration", NO_MIGRATION),
    refused("HotplugHostDevices", NO_HOST_DEVICES),
    tell("GetDomain", Ask::Domain),
    tell("GetDomainStats", Ask::Stats),
    tell("GetGuestInfo", Ask::GuestInfo),
    tell("GetUsers", Ask::Users),
    tell("GetFilesystems", Ask::Filesystems),
    plain("Ping", Method::Ping),
    ("Exec", Method::Exec, Shape::Text),
    ("GuestPing", Method::GuestPing, Shape::Text),
    plain("VirtualMachineMemoryDump", Method::Dump),
    ("GetQemuVersion", Method::Text(QEMU_VERSION), Shape::Text),
    refused("SyncVirtualMachineCPUs", NO_CPU_HOTPLUG),
    refused("SyncVirtualMachineMemory", NO_MEMORY_HOTPLUG),
    refused_text("GetSEVInfo", NO_SEV),
    refused_text("GetLaunchMeasurement", NO_SEV),
    refused("InjectLaunchSecret", NO_SEV),
    refused_text("GetDomainDirtyRateStats", NO_DIRTY_RATE),
    refused_text("GetScreenshot", NO_SCREEN),
    refused("BackupVirtualMachine", NO_BACKUP),
    refused_text("RedefineCheckpoint", NO_BACKUP),
    ("GetVMStats", Method::VmStats, Shape::Text),
];

static INFO: Entry = plain("Info", Method::Info);

/// The method at the path of a call.
pub(super) fn find(path: &str) -> Option<&'static Entry> {
    match path.strip_prefix('/')?.split_once('/')? {
        ("kubevirt.cmd.v1.Cmd", name) => CMD.iter().find(|(known, ..)| *known == name),
        ("kubevirt.cmd.info.CmdInfo", "Info") => Some(&INFO),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_method_has_its_path() {
        let known = |path| find(path).map(|(name, ..)| *name);
        assert_eq!(known("/kubevirt.cmd.v1.Cmd/Ping"), Some("Ping"));
        assert_eq!(known("/kubevirt.cmd.info.CmdInfo/Info"), Some("Info"));
        for unknown in [
            "",
            "/",
            "Ping",
            "/kubevirt.cmd.v1.Cmd/",
            "/kubevirt.cmd.v2.Cmd/Ping",
        ] {
            assert_eq!(known(unknown), None, "{unknown}");
        }
        let mut names: Vec<_> = CMD.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 36);
    }

    /// docs/kubevirt.md tells of each.
    #[test]
    fn each_method_is_documented() {
        let text = include_str!("../../../../../docs/kubevirt.md");
        for (name, method, _) in &CMD {
            let line = text
                .lines()
                .find(|line| line.contains(&format!("`{name}`")));
            let line = line.unwrap_or_else(|| panic!("{name} is missing"));
            let refused = matches!(method, Method::Refused(_));
            assert_eq!(line.contains("refused"), refused, "{line}");
        }
    }
}
