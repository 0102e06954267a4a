//! From a VMI and the command line to everything that is to be opened and built.
//!
//! Pure: the same input gives the same plan on every host, so plans are golden files in tests and
//! `podvisor plan` prints them.

mod boot;
mod disks;
mod host_devices;
mod iso;
mod needs;
mod nics;
mod ports;
mod slots;

use std::path::{Path, PathBuf};

use devices::pod_net::MAX_LABEL;
use devices::virtio::balloon::BalloonOptions;
use devices::virtio::rng::RngOptions;
use devices::virtio::vsock::VsockOptions;
use serde::Serialize;
use vmm::layout::MAX_PCI_DEVICES;
use vmm::plan::{
    BootPlan, CpuPlan, Enlightenment, HypervisorPlan, MachinePlan, MachineVersion, MemoryPlan,
    WatchdogPlan,
};

pub use self::boot::{BootDisks, BootFile};
pub use self::disks::{
    Asked, BaseFormat, DiskSource, ImagePath, ImageSource, LaterDisk, Overlay, later_disks,
};
pub use self::host_devices::{HostDeviceList, HostDeviceOrigin, HostDeviceSource};
pub(crate) use self::iso::access_secret;
pub use self::iso::{IsoDirectory, IsoFile, IsoPlan, NamedFile, PublicKeys, Take};
pub use self::needs::needs;
pub use self::nics::{LaterNic, NicSource, later_nics};
pub(crate) use self::ports::AGENT;
pub use self::ports::{PORTS, PortTarget};
use self::slots::Slots;
use crate::network::Forward;
use crate::vmi::{HostAddress, RebootPolicy, Report, Vmi};

/// Kubernetes' default of `terminationGracePeriodSeconds`.
pub(crate) const DEFAULT_GRACE_SECONDS: u64 = 30;

/// Most queues of a device: disks and NICs alike.
const MAX_QUEUES: u16 = devices::virtio::net::MAX_QUEUE_PAIRS;
const _: () = assert!(MAX_QUEUES == devices::virtio::block::MAX_QUEUES);

/// What the command line says about the machine.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    /// Stands for `firmware.kernelBoot.container.kernelPath`.
    pub kernel: Option<PathBuf>,
    /// Stands for `firmware.kernelBoot.container.initrdPath`.
    pub initrd: Option<PathBuf>,
    /// Stands for `firmware.kernelBoot.kernelArgs`.
    pub cmdline: Option<String>,
    /// Firmware, which is started instead of a kernel.
    pub firmware: Option<PathBuf>,
    /// Entry of the disk's boot loader to boot instead of its default.
    pub boot_entry: Option<String>,
    /// Where volumes are, by name; `qcow2:` before the path of an image says its format.
    pub volumes: Vec<(String, PathBuf)>,
    /// Sizes of disks whose volumes are not written to, in bytes, by the volume's name: what the guest sees may be larger than
    /// what is there.
    pub sizes: Vec<(String, u64)>,
    /// Empty files for what guests write to volumes that are not written to, by the volume's name.
    pub overlays: Vec<(String, PathBuf)>,
    /// The pod's interface for the pod network.
    pub pod_interface: String,
    /// Ports of the pod for the NIC behind passt, besides those of the VMI. If none, and the VMI lists none either, all
    /// ports are let in.
    pub publish: Option<Vec<Forward>>,
    /// Drop frames of the guest that do not come from its MAC address.
    pub mac_spoof_check: bool,
    /// Files for the packets of NICs, by the interface's name.
    pub captures: Vec<(String, PathBuf)>,
    /// Stands for `rebootPolicy: Terminate`.
    pub exit_on_reboot: bool,
    /// Socket of a channel to the guest's agent.
    pub guest_agent: Option<PathBuf>,
    /// The host's end of a console beside the serial one.
    pub virtio_console: Option<PortTarget>,
    /// Sockets of other ports, by the names that they have in the guest.
    pub ports: Vec<(String, PathBuf)>,
    /// Address of the guest's vsock device, which it has then in any case.
    pub vsock_cid: Option<u32>,
    /// Which devices of the host are those of the VMI, by its names for them.
    pub host_devices: Vec<(String, HostAddress)>,
    /// Slots for devices that come and go while the machine runs.
    pub hotplug_slots: u8,
    /// NICs may go while the machine runs, too.
    pub removable_nics: bool,
    /// Disks whose volumes are hotpluggable come later ([`later_disks`]).
    pub without_hotpluggable: bool,
}

impl PlanOptions {
    /// Where the command line says that a volume is.
    fn volume(&self, name: &str) -> Option<&Path> {
        said_of(name, &self.volumes).map(PathBuf::as_path)
    }

    /// How large the disk of a volume is to be.
    fn size(&self, name: &str) -> Option<u64> {
        said_of(name, &self.sizes).copied()
    }

    /// Where packets of this interface are written down.
    fn capture(&self, name: &str) -> Option<PathBuf> {
        said_of(name, &self.captures).cloned()
    }

    /// Where what the guest writes to a volume goes.
    fn overlay(&self, name: &str) -> Option<PathBuf> {
        said_of(name, &self.overlays).cloned()
    }
}

/// The first that was said of what has this name.
fn said_of<'a, T>(name: &str, said: &'a [(String, T)]) -> Option<&'a T> {
    let mut said = said.iter();
    said.find(|(of, _)| of == name).map(|(_, what)| what)
}

/// A machine and where its parts are.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchPlan {
    /// Name of the VMI.
    pub name: String,
    /// The machine; its NICs follow from `nics` once the pod's network is prepared.
    pub machine: MachinePlan,
    /// Kernel image, if the machine boots one.
    pub kernel: Option<BootFile>,
    /// Initial RAM disk.
    pub initrd: Option<BootFile>,
    /// Firmware, if the machine starts with that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<BootFile>,
    /// Where the kernel is looked for, if the machine starts with neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_disks: Option<BootDisks>,
    /// Where the images of disks are.
    pub disks: Vec<DiskSource>,
    /// The host's ends of the ports of the device [`PORTS`], in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortTarget>,
    /// NICs in the order of the VMI.
    pub nics: Vec<NicSource>,
    /// Where devices of the host are, in the order of those of `machine`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_devices: Vec<HostDeviceSource>,
    /// Host name for the guest.
    pub hostname: String,
    /// DNS subdomain for the guest.
    pub subdomain: Option<String>,
    /// Seconds between the power button and a forced stop.
    pub grace_seconds: u64,
    /// A guest reset ends the run.
    pub exit_on_reboot: bool,
    /// Connect the serial console.
    pub serial_console: bool,
}

/// Plans the machine, or says what in the VMI and the options does not go together.
pub fn plan(vmi: &Vmi, options: &PlanOptions) -> Result<LaunchPlan, Report> {
    let mut report = Report::default();
    disks::check_options(vmi, options, &mut report);
    let plan = launch_plan(vmi, options);
    boot::check(vmi, options, &plan, &mut report);
    nics::check_options(&plan.nics, options, &mut report);
    host_devices::check_options(&plan.host_devices, options, &mut report);
    let others = plan.machine.watchdog.iter().count() + plan.host_devices.len();
    let count = plan.machine.devices.len() + plan.nics.len() + others;
    if count > MAX_PCI_DEVICES {
        let (path, found) = match plan.ports.is_empty() {
            true => ("spec.domain.devices", "PCI devices"),
            false => (
                "--guest-agent and --virtio-console",
                "PCI devices with theirs",
            ),
        };
        report.error(
            path,
            format_args!("{count} {found}"),
            format_args!("at most {MAX_PCI_DEVICES}"),
        );
    } else if free_slots(&plan) < usize::from(options.hotplug_slots) {
        report.error(
            "--hotplug-slots",
            options.hotplug_slots,
            format_args!(
                "at most {} beside the VMI's {count}",
                MAX_PCI_DEVICES - count
            ),
        );
    }
    if report.errors.is_empty() {
        Ok(plan)
    } else {
        Err(report)
    }
}

/// Slots for devices that come later.
fn free_slots(plan: &LaunchPlan) -> usize {
    let is_nic = |slot: &u8| plan.nics.iter().any(|nic| nic.pci_slot == *slot);
    let slots = plan.machine.hotplug_slots.iter();
    slots.filter(|slot| !is_nic(slot)).count()
}

fn launch_plan(vmi: &Vmi, options: &PlanOptions) -> LaunchPlan {
    let spec = &vmi.spec;
    let interfaces = spec.devices.interfaces.iter();
    let mut slots = Slots::new(interfaces.filter_map(|nic| nic.pci_slot));
    let mut devices = Vec::new();
    let mut sources = Vec::new();
    let mut bootable = Vec::new();
    for disk in &spec.devices.disks {
        let mut volumes = spec.volumes.iter();
        if let Some(volume) = volumes.find(|volume| volume.name == disk.name) {
            if options.without_hotpluggable && volume.hotpluggable {
                // It is its own all the same.
                slots.name(&disk.name, "disk");
                continue;
            }
            let block = disks::block_options(vmi, disk, volume);
            let device = slots.device(&disk.name, "disk", None, block);
            let source = disks::source(vmi, disk, volume, &device.name, options);
            if boot::may_boot(disk, &source.image) {
                bootable.push((disk, device.name.clone()));
            }
            sources.push(source);
            devices.push(device);
        }
    }
    let nics = nics::nics(vmi, options, &mut slots);
    if spec.devices.rng {
        devices.push(slots.device("rng", "device", None, RngOptions {}));
    }
    let (ports, console) = ports::ports(options);
    if let Some(console) = console {
        devices.push(slots.device(PORTS, "device", None, console));
    }
    // Pages of neither kind can be given back one by one, and what a device of the host writes to none.
    let is_pinned = spec.memory.hugepage_size.is_some()
        || spec.cpu.placement.realtime != 0
        || host_devices::are_some(spec);
    if spec.devices.balloon && !is_pinned {
        devices.push(slots.device("balloon", "device", None, BalloonOptions {}));
    }
    let watchdog = spec.devices.watchdog.map(|action| WatchdogPlan {
        pci_slot: slots.slot(None),
        action,
    });
    if spec.devices.vsock || options.vsock_cid.is_some() {
        let guest_cid = options.vsock_cid;
        devices.push(slots.device("vsock", "device", None, VsockOptions { guest_cid }));
    }
    let (host_devices, host_sources) = host_devices::host_devices(vmi, options, &mut slots);
    let mut hotplug_slots = slots.later(options.hotplug_slots);
    if options.removable_nics {
        hotplug_slots.extend(nics.iter().map(|nic| nic.pci_slot));
    }
    let firmware = boot::file(options.firmware.as_ref(), None);
    let kernel = boot::kernel(vmi, options);
    let boot = match (&firmware, &kernel) {
        (Some(_), _) => BootPlan::Firmware,
        (None, Some(_)) => boot::linux(vmi, options),
        (None, None) => BootPlan::Disk,
    };
    let of_disk = boot == BootPlan::Disk;
    let machine = MachinePlan {
        devices,
        host_devices,
        watchdog,
        hotplug_slots,
        ..machine_plan(vmi, boot)
    };
    LaunchPlan {
        name: vmi.metadata.name.clone(),
        machine,
        boot_disks: of_disk.then(|| boot::disks(bootable, options)),
        kernel,
        firmware,
        initrd: boot::initrd(vmi, options),
        disks: sources,
        ports,
        nics,
        host_devices: host_sources,
        hostname: hostname(vmi),
        subdomain: spec.subdomain.clone(),
        grace_seconds: spec.grace_seconds.unwrap_or(DEFAULT_GRACE_SECONDS),
        exit_on_reboot: options.exit_on_reboot || spec.reboot_policy == RebootPolicy::Terminate,
        serial_console: spec.devices.serial_console,
    }
}

/// As KubeVirt names its pods: the first label of the VMI's name, cut to what DNS allows.
fn hostname(vmi: &Vmi) -> String {
    let label = vmi.metadata.name.split('.').next().unwrap_or_default();
    let cut = label.get(..MAX_LABEL).unwrap_or(label);
    let derived = || cut.trim_end_matches('-').to_owned();
    vmi.spec.hostname.clone().unwrap_or_else(derived)
}

/// The machine but for its devices.
fn machine_plan(vmi: &Vmi, boot: BootPlan) -> MachinePlan {
    let spec = &vmi.spec;
    MachinePlan {
        version: MachineVersion::default(),
        name: format!("{}/{}", vmi.metadata.namespace, vmi.metadata.name),
        identity: spec.identity.plan(&vmi.metadata.name),
        cpu: CpuPlan {
            sockets: spec.cpu.sockets,
            cores: spec.cpu.cores,
            threads: spec.cpu.threads,
            features: spec.cpu.features.clone(),
            model: spec.cpu.model.clone(),
            hypervisor: hypervisor(vmi),
        },
        clock: spec.clock.shown.clone(),
        memory: MemoryPlan {
            bytes: spec.memory.bytes,
            hugepage_size: spec.memory.hugepage_size,
        },
        boot,
        devices: Vec::new(),
        host_devices: Vec::new(),
        watchdog: None,
        hotplug_slots: Vec::new(),
        placement: spec.cpu.placement,
        nodes: Vec::new(),
        start_paused: spec.start_paused,
    }
}

fn hypervisor(vmi: &Vmi) -> HypervisorPlan {
    let (features, clock) = (&vmi.spec.features, &vmi.spec.clock);
    let mut hyperv = features.hyperv.clone();
    if clock.hyperv_time {
        let parts = &mut hyperv.get_or_insert_default().enlightenments;
        if !parts.contains(&Enlightenment::Time) {
            parts.push(Enlightenment::Time);
        }
    }
    HypervisorPlan {
        kvm_hidden: features.kvm_hidden,
        kvmclock_hidden: clock.kvmclock_hidden,
        hyperv,
    }
}

/// One queue, or one a vCPU.
fn queues(vmi: &Vmi, multi: bool) -> u16 {
    if multi {
        vmi.spec.cpu.count().min(MAX_QUEUES)
    } else {
        1
    }
}
