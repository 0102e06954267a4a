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
    /// Counters, those that are wanted.
    VmStats,
    /// Not done, in words for users.
    Refused(&'static str),
    /// The same where virt-handler and its probes expect the call itself to fail.
    Failing(&'static str),
}

/// How the response looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `Response`.
    Plain,
    /// A message whose first field is a `Response`, and whose second may be a text.
    Text,
}

const NO_AGENT: &str = "The guest agent cannot be asked by podvisor yet";
const NO_MIGRATION: &str = "podvisor cannot migrate machines yet; set evictionStrategy: None";
const NO_HOST_DEVICES: &str = "podvisor has no host devices";
const NO_CPU_HOTPLUG: &str = "podvisor cannot change the number of vCPUs of a running machine";
const NO_MEMORY_HOTPLUG: &str = "podvisor cannot change the memory of a running machine";
const NO_SEV: &str = "podvisor has no confidential machines (launchSecurity)";
const NO_DUMP: &str = "podvisor cannot write memory dumps yet";
const NO_DIRTY_RATE: &str = "podvisor does not measure how fast a guest changes its memory";
const NO_SCREEN: &str = "podvisor's machines have no screen yet; use the serial console";
const NO_BACKUP: &str = "podvisor cannot back up disks yet";

/// As KubeVirt's client reads it: three numbers.
const QEMU_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Name, what becomes of it, and how its response looks.
type Entry = (&'static str, Method, Shape);

const CMD: [Entry; 36] = [
    ("SyncVirtualMachine", Method::Sync, Shape::Plain),
    ("PauseVirtualMachine", Method::Ask(Ask::Pause), Shape::Plain),
    (
        "UnpauseVirtualMachine",
        Method::Ask(Ask::Unpause),
        Shape::Plain,
    ),
    (
        "FreezeVirtualMachine",
        Method::Refused(NO_AGENT),
        Shape::Plain,
    ),
    (
        "UnfreezeVirtualMachine",
        Method::Refused(NO_AGENT),
        Shape::Plain,
    ),
    ("ResetVirtualMachine", Method::Ask(Ask::Reset), Shape::Plain),
    (
        "SoftRebootVirtualMachine",
        Method::Ask(Ask::SoftReboot),
        Shape::Plain,
    ),
    (
        "ShutdownVirtualMachine",
        Method::Ask(Ask::Shutdown),
        Shape::Plain,
    ),
    ("KillVirtualMachine", Method::Ask(Ask::Kill), Shape::Plain),
    (
        "DeleteVirtualMachine",
        Method::Ask(Ask::Delete),
        Shape::Plain,
    ),
    (
        "MigrateVirtualMachine",
        Method::Refused(NO_MIGRATION),
        Shape::Plain,
    ),
    (
        "SyncMigrationTarget",
        Method::Refused(NO_MIGRATION),
        Shape::Plain,
    ),
    (
        "CancelVirtualMachineMigration",
        Method::Refused(NO_MIGRATION),
        Shape::Plain,
    ),
    (
        "SignalTargetPodCleanup",
        Method::Refused(NO_MIGRATION),
        Shape::Plain,
    ),
    (
        "FinalizeVirtualMachineMigration",
        Method::Refused(NO_MIGRATION),
        Shape::Plain,
    ),
    (
        "HotplugHostDevices",
        Method::Refused(NO_HOST_DEVICES),
        Shape::Plain,
    ),
    ("GetDomain", Method::Ask(Ask::Domain), Shape::Text),
    ("GetDomainStats", Method::Ask(Ask::Stats), Shape::Text),
    // Without an agent: an object with nothing in it, and empty lists.
    ("GetGuestInfo", Method::Text("{}"), Shape::Text),
    ("GetUsers", Method::Text("[]"), Shape::Text),
    ("GetFilesystems", Method::Text("[]"), Shape::Text),
    ("Ping", Method::Ping, Shape::Plain),
    ("Exec", Method::Failing(NO_AGENT), Shape::Text),
    ("GuestPing", Method::Failing(NO_AGENT), Shape::Text),
    (
        "VirtualMachineMemoryDump",
        Method::Refused(NO_DUMP),
        Shape::Plain,
    ),
    ("GetQemuVersion", Method::Text(QEMU_VERSION), Shape::Text),
    (
        "SyncVirtualMachineCPUs",
        Method::Refused(NO_CPU_HOTPLUG),
        Shape::Plain,
    ),
    (
        "SyncVirtualMachineMemory",
        Method::Refused(NO_MEMORY_HOTPLUG),
        Shape::Plain,
    ),
    ("GetSEVInfo", Method::Refused(NO_SEV), Shape::Text),
    ("GetLaunchMeasurement", Method::Refused(NO_SEV), Shape::Text),
    ("InjectLaunchSecret", Method::Refused(NO_SEV), Shape::Plain),
    (
        "GetDomainDirtyRateStats",
        Method::Refused(NO_DIRTY_RATE),
        Shape::Text,
    ),
    ("GetScreenshot", Method::Refused(NO_SCREEN), Shape::Text),
    (
        "BackupVirtualMachine",
        Method::Refused(NO_BACKUP),
        Shape::Plain,
    ),
    (
        "RedefineCheckpoint",
        Method::Refused(NO_BACKUP),
        Shape::Text,
    ),
    ("GetVMStats", Method::VmStats, Shape::Text),
];

const INFO: Entry = ("Info", Method::Info, Shape::Plain);

/// The method at the path of a call.
pub(super) fn find(path: &str) -> Option<&'static Entry> {
    const { assert!(CMD.len() == 36) };
    static METHODS: [Entry; 36] = CMD;
    static VERSIONS: Entry = INFO;
    match path.strip_prefix('/')?.split_once('/')? {
        ("kubevirt.cmd.v1.Cmd", name) => METHODS.iter().find(|(known, ..)| *known == name),
        ("kubevirt.cmd.info.CmdInfo", "Info") => Some(&VERSIONS),
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
        for (name, method, _) in CMD {
            let line = text
                .lines()
                .find(|line| line.contains(&format!("`{name}`")));
            let line = line.unwrap_or_else(|| panic!("{name} is missing"));
            let refused = matches!(method, Method::Refused(_) | Method::Failing(_));
            assert_eq!(line.contains("refused"), refused, "{line}");
        }
    }
}
