//! What becomes of each field of an instance type and of a preference: tables, from which writing them out, `podvisor
//! explain` and `docs/vmi-support.md` follow. Both are sorted.

use std::fmt;

use Becomes::{Field, Otherwise, Replaces};

/// What becomes of a field. Paths are those within a VMI's `spec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becomes {
    /// The template's field; a preference's where the template has none.
    Field(&'static str),
    /// The template's field, whatever that has: KubeVirt cannot tell whether it has something.
    Replaces(&'static str),
    /// Something else.
    Otherwise(&'static str),
}

impl fmt::Display for Becomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(path) => write!(f, "`spec.{path}`"),
            Self::Replaces(path) => write!(f, "`spec.{path}`, whatever the template has"),
            Self::Otherwise(words) => f.write_str(words),
        }
    }
}

/// A field of an instance type's or a preference's spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its path there.
    pub field: &'static str,
    /// What becomes of it.
    pub becomes: Becomes,
}

/// An instance type's. What it gives must not be in the template, too.
pub const INSTANCETYPE: &[Given] = &[
    Given {
        field: "annotations",
        becomes: Otherwise("those of the template; another value there is refused"),
    },
    Given {
        field: "cpu.dedicatedCPUPlacement",
        becomes: Field("domain.cpu.dedicatedCpuPlacement"),
    },
    Given {
        field: "cpu.guest",
        becomes: Otherwise("vCPUs, arranged as the preference says: sockets where it says nothing"),
    },
    Given {
        field: "cpu.isolateEmulatorThread",
        becomes: Field("domain.cpu.isolateEmulatorThread"),
    },
    Given {
        field: "cpu.maxSockets",
        becomes: Field("domain.cpu.maxSockets"),
    },
    Given {
        field: "cpu.model",
        becomes: Field("domain.cpu.model"),
    },
    Given {
        field: "cpu.numa",
        becomes: Field("domain.cpu.numa"),
    },
    Given {
        field: "cpu.realtime",
        becomes: Field("domain.cpu.realtime"),
    },
    Given {
        field: "gpus",
        becomes: Field("domain.devices.gpus"),
    },
    Given {
        field: "hostDevices",
        becomes: Field("domain.devices.hostDevices"),
    },
    Given {
        field: "ioThreads",
        becomes: Field("domain.ioThreads"),
    },
    Given {
        field: "ioThreadsPolicy",
        becomes: Field("domain.ioThreadsPolicy"),
    },
    Given {
        field: "launchSecurity",
        becomes: Field("domain.launchSecurity"),
    },
    Given {
        field: "memory.guest",
        becomes: Field("domain.memory.guest"),
    },
    Given {
        field: "memory.hugepages",
        becomes: Field("domain.memory.hugepages"),
    },
    Given {
        field: "memory.maxGuest",
        becomes: Field("domain.memory.maxGuest"),
    },
    Given {
        field: "memory.overcommitPercent",
        becomes: Otherwise("nothing: it is for who makes the pod"),
    },
    Given {
        field: "nodeSelector",
        becomes: Field("nodeSelector"),
    },
    Given {
        field: "schedulerName",
        becomes: Field("schedulerName"),
    },
];

/// A preference's.
pub const PREFERENCE: &[Given] = &[
    Given {
        field: "annotations",
        becomes: Otherwise("those of the template that it has not"),
    },
    Given {
        field: "clock.preferredClockOffset",
        becomes: Otherwise("`spec.domain.clock`, if that has neither `utc` nor `timezone`"),
    },
    Given {
        field: "clock.preferredTimer",
        becomes: Field("domain.clock.timer"),
    },
    Given {
        field: "cpu.preferredCPUFeatures",
        becomes: Otherwise("those that `spec.domain.cpu.features` does not name are added"),
    },
    Given {
        field: "cpu.preferredCPUTopology",
        becomes: Otherwise("how the instance type's vCPUs are arranged"),
    },
    Given {
        field: "cpu.spreadOptions.across",
        becomes: Otherwise("how they are, with `spread`"),
    },
    Given {
        field: "cpu.spreadOptions.ratio",
        becomes: Otherwise("how they are, with `spread`; 2 where there is none"),
    },
    Given {
        field: "devices.preferredAutoattachGraphicsDevice",
        becomes: Field("domain.devices.autoattachGraphicsDevice"),
    },
    Given {
        field: "devices.preferredAutoattachInputDevice",
        becomes: Field("domain.devices.autoattachInputDevice"),
    },
    Given {
        field: "devices.preferredAutoattachMemBalloon",
        becomes: Field("domain.devices.autoattachMemBalloon"),
    },
    Given {
        field: "devices.preferredAutoattachPodInterface",
        becomes: Field("domain.devices.autoattachPodInterface"),
    },
    Given {
        field: "devices.preferredAutoattachSerialConsole",
        becomes: Field("domain.devices.autoattachSerialConsole"),
    },
    Given {
        field: "devices.preferredBlockMultiQueue",
        becomes: Field("domain.devices.blockMultiQueue"),
    },
    Given {
        field: "devices.preferredCdromBus",
        becomes: Otherwise("`cdrom.bus` of CD-ROM drives"),
    },
    Given {
        field: "devices.preferredDisableHotplug",
        becomes: Replaces("domain.devices.disableHotplug"),
    },
    Given {
        field: "devices.preferredDiskBlockSize",
        becomes: Otherwise("`blockSize` of disks"),
    },
    Given {
        field: "devices.preferredDiskBus",
        becomes: Otherwise("`disk.bus` of disks"),
    },
    Given {
        field: "devices.preferredDiskCache",
        becomes: Otherwise("`cache` of disks"),
    },
    Given {
        field: "devices.preferredDiskDedicatedIoThread",
        becomes: Otherwise("`dedicatedIOThread` of disks"),
    },
    Given {
        field: "devices.preferredDiskIO",
        becomes: Otherwise("`io` of disks"),
    },
    Given {
        field: "devices.preferredInputBus",
        becomes: Otherwise("`bus` of input devices"),
    },
    Given {
        field: "devices.preferredInputType",
        becomes: Otherwise("`type` of input devices"),
    },
    Given {
        field: "devices.preferredInterfaceMasquerade",
        becomes: Otherwise("`masquerade` of interfaces of the pod network that have no binding"),
    },
    Given {
        field: "devices.preferredInterfaceModel",
        becomes: Otherwise("`model` of interfaces"),
    },
    Given {
        field: "devices.preferredLunBus",
        becomes: Otherwise("`lun.bus` of LUNs"),
    },
    Given {
        field: "devices.preferredNetworkInterfaceMultiQueue",
        becomes: Field("domain.devices.networkInterfaceMultiqueue"),
    },
    Given {
        field: "devices.preferredPanicDeviceModel",
        becomes: Otherwise("`spec.domain.devices.panicDevices`, if it has none"),
    },
    Given {
        field: "devices.preferredRng",
        becomes: Field("domain.devices.rng"),
    },
    Given {
        field: "devices.preferredSoundModel",
        becomes: Otherwise("`model` of a sound card"),
    },
    Given {
        field: "devices.preferredTPM",
        becomes: Field("domain.devices.tpm"),
    },
    Given {
        field: "devices.preferredUseVirtioTransitional",
        becomes: Field("domain.devices.useVirtioTransitional"),
    },
    Given {
        field: "devices.preferredVideoType",
        becomes: Field("domain.devices.video.type"),
    },
    Given {
        field: "devices.preferredVirtualGPUOptions",
        becomes: Otherwise("nothing: there is no screen"),
    },
    Given {
        field: "features.preferredAcpi",
        becomes: Replaces("domain.features.acpi"),
    },
    Given {
        field: "features.preferredApic",
        becomes: Field("domain.features.apic"),
    },
    Given {
        field: "features.preferredHyperv.evmcs",
        becomes: Field("domain.features.hyperv.evmcs"),
    },
    Given {
        field: "features.preferredHyperv.frequencies",
        becomes: Field("domain.features.hyperv.frequencies"),
    },
    Given {
        field: "features.preferredHyperv.ipi",
        becomes: Field("domain.features.hyperv.ipi"),
    },
    Given {
        field: "features.preferredHyperv.reenlightenment",
        becomes: Field("domain.features.hyperv.reenlightenment"),
    },
    Given {
        field: "features.preferredHyperv.relaxed",
        becomes: Field("domain.features.hyperv.relaxed"),
    },
    Given {
        field: "features.preferredHyperv.reset",
        becomes: Field("domain.features.hyperv.reset"),
    },
    Given {
        field: "features.preferredHyperv.runtime",
        becomes: Field("domain.features.hyperv.runtime"),
    },
    Given {
        field: "features.preferredHyperv.spinlocks",
        becomes: Field("domain.features.hyperv.spinlocks"),
    },
    Given {
        field: "features.preferredHyperv.synic",
        becomes: Field("domain.features.hyperv.synic"),
    },
    Given {
        field: "features.preferredHyperv.synictimer",
        becomes: Field("domain.features.hyperv.synictimer"),
    },
    Given {
        field: "features.preferredHyperv.tlbflush",
        becomes: Field("domain.features.hyperv.tlbflush"),
    },
    Given {
        field: "features.preferredHyperv.vapic",
        becomes: Field("domain.features.hyperv.vapic"),
    },
    Given {
        field: "features.preferredHyperv.vendorid",
        becomes: Field("domain.features.hyperv.vendorid"),
    },
    Given {
        field: "features.preferredHyperv.vpindex",
        becomes: Field("domain.features.hyperv.vpindex"),
    },
    Given {
        field: "features.preferredKvm",
        becomes: Field("domain.features.kvm"),
    },
    Given {
        field: "features.preferredPvspinlock",
        becomes: Field("domain.features.pvspinlock"),
    },
    Given {
        field: "features.preferredSmm",
        becomes: Field("domain.features.smm"),
    },
    Given {
        field: "firmware.preferredEfi",
        becomes: Otherwise(
            "`spec.domain.firmware.bootloader.efi`, if it has none and no `bios`; Secure Boot is left out with a notice",
        ),
    },
    Given {
        field: "firmware.preferredUseBios",
        becomes: Otherwise("`spec.domain.firmware.bootloader.bios`, if it has no `efi`"),
    },
    Given {
        field: "firmware.preferredUseBiosSerial",
        becomes: Otherwise("`bios.useSerial` with `bios`"),
    },
    Given {
        field: "firmware.preferredUseEfi",
        becomes: Otherwise("`spec.domain.firmware.bootloader.efi`, if it has none and no `bios`"),
    },
    Given {
        field: "firmware.preferredUseSecureBoot",
        becomes: Otherwise("`efi.secureBoot` with `efi`; left out with a notice"),
    },
    Given {
        field: "machine.preferredMachineType",
        becomes: Field("domain.machine.type"),
    },
    Given {
        field: "preferSpreadSocketToCoreRatio",
        becomes: Otherwise("as `cpu.spreadOptions.ratio`, which goes before it"),
    },
    Given {
        field: "preferredArchitecture",
        becomes: Field("architecture"),
    },
    Given {
        field: "preferredLaunchSecurity",
        becomes: Field("domain.launchSecurity"),
    },
    Given {
        field: "preferredSubdomain",
        becomes: Field("subdomain"),
    },
    Given {
        field: "preferredTerminationGracePeriodSeconds",
        becomes: Field("terminationGracePeriodSeconds"),
    },
    Given {
        field: "requirements.architecture",
        becomes: Otherwise("a machine of another architecture is refused"),
    },
    Given {
        field: "requirements.cpu.guest",
        becomes: Otherwise("a machine of fewer vCPUs is refused"),
    },
    Given {
        field: "requirements.memory.guest",
        becomes: Otherwise("a machine of less memory is refused"),
    },
    Given {
        field: "volumes.preferredStorageClassName",
        becomes: Otherwise("nothing: it is for who makes the volumes"),
    },
];

/// The names of all.
pub(super) fn names(given: &'static [Given]) -> Vec<&'static str> {
    given.iter().map(|given| given.field).collect()
}

/// Those that become fields of the template as they are, and these.
pub(super) fn moved(given: &'static [Given]) -> impl Iterator<Item = (&'static str, &'static str)> {
    given.iter().filter_map(|given| match given.becomes {
        Field(to) => Some((given.field, to)),
        Replaces(_) | Otherwise(_) => None,
    })
}

/// The entry for a field, by its kind or the cluster-wide one's: `VirtualMachinePreference.spec.clock.preferredTimer`.
pub fn lookup(path: &str) -> Option<&'static Given> {
    let (kind, field) = path.split_once(".spec.")?;
    let given = match kind {
        "VirtualMachineInstancetype" | "VirtualMachineClusterInstancetype" => INSTANCETYPE,
        "VirtualMachinePreference" | "VirtualMachineClusterPreference" => PREFERENCE,
        _ => return None,
    };
    given.iter().find(|given| given.field == field)
}
