//! What the launcher sent, each descriptor in its place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use devices::character::Character;
use devices::host_errors::HostErrors;
use devices::legacy::power::Signals;
use devices::legacy::serial::ConsoleQueue;
use devices::thread::{ThreadHook, ThreadRole};
use devices::vfio::{Dma, HostDevice};
use devices::virtio::block;
use devices::virtio::spec::DeviceOptions;

use super::ProcessError;
use crate::arch::debug;
use crate::console::Console;
use crate::control::{Create, FdRole};
use crate::debug::Seat;
use crate::host_devices::HostDeviceResource;
use crate::kvm::Hypervisor;
use crate::machine::{BuildError, DeviceResource, Resources};
use crate::memory::Ram;
use crate::payload::{Boot, Payload};
use crate::placement::Placement;
use crate::plan::{BootPlan, HostDevicePlan, MachinePlan};
use crate::snapshot::{SavedMachine, SnapshotError};
use crate::steward::Steward;
use crate::trace;

/// Everything a run needs.
pub(super) struct Inputs {
    pub(super) plan: MachinePlan,
    /// What the machine is to be restored from.
    pub(super) saved: Option<SavedMachine>,
    pub(super) resources: Resources,
    pub(super) console: Console,
    /// Where a debugger may come.
    pub(super) debugger: Option<OwnedFd>,
    pub(super) exit_on_reboot: bool,
    /// Tell the launcher the steps of the start.
    pub(super) boot_trace: bool,
}

/// Where the serial console goes.
#[derive(Default)]
struct ConsoleFds {
    /// Terminal, pipe or file to read from.
    input: Option<OwnedFd>,
    /// Terminal, pipe or file to write to.
    output: Option<OwnedFd>,
    /// Listening unix socket.
    listener: Option<OwnedFd>,
    /// Copy of all output.
    log: Option<File>,
}

impl ConsoleFds {
    fn open(self) -> io::Result<Character> {
        match self.listener {
            Some(listener) => Character::socket(listener, self.log),
            None => Character::streams(self.input, self.output, self.log),
        }
    }
}

/// What is booted, with names for messages.
#[derive(Default)]
struct BootFds {
    kernel: Option<(String, File)>,
    initrd: Option<File>,
    firmware: Option<(String, File)>,
}

impl BootFds {
    /// What the plan boots; none where a disk is still to be read. `of_disk`: the command line of what was found there.
    fn open(self, plan: &BootPlan, of_disk: Option<String>) -> Result<Option<Boot>, ProcessError> {
        let missing = ProcessError::missing;
        let cmdline = match plan {
            BootPlan::Firmware => {
                let (name, image) = self.firmware.ok_or_else(|| missing("firmware"))?;
                let payload = Payload::Firmware(image);
                return Ok(Some(Boot { name, payload }));
            }
            BootPlan::Linux { .. } if self.kernel.is_none() => return Err(missing("kernel")),
            BootPlan::Linux { cmdline } => cmdline.clone(),
            BootPlan::Disk => of_disk.unwrap_or_default(),
        };
        let initrd = self.initrd;
        Ok(self.kernel.map(|(name, kernel)| Boot {
            name,
            payload: Payload::Linux {
                kernel,
                initrd,
                cmdline,
            },
        }))
    }
}

/// Descriptors of a snapshot.
#[derive(Default)]
struct SnapshotFds {
    state: Option<File>,
    ram: Option<File>,
}

impl SnapshotFds {
    /// The saved machine, if there is one; its RAM is in `ram` then.
    fn load(self, ram: &Ram) -> Result<Option<SavedMachine>, SnapshotError> {
        let (Some(mut state), Some(mut file)) = (self.state, self.ram) else {
            return Ok(None);
        };
        SavedMachine::read(&mut state, ram, &mut file).map(Some)
    }
}

/// A device of the host from its two descriptors.
fn open_host_device(
    plan: &HostDevicePlan,
    descriptors: Option<Vec<OwnedFd>>,
) -> Result<HostDeviceResource, ProcessError> {
    let pair = <[OwnedFd; 2]>::try_from(descriptors.unwrap_or_default());
    let [device, group] =
        pair.map_err(|_| ProcessError::missing(&format!("host device {:?}", plan.name)))?;
    Ok(HostDeviceResource {
        pci_slot: plan.pci_slot,
        device: Arc::new(HostDevice::open(plan.name.clone(), device, group)?),
    })
}

/// Pairs each descriptor with its role and wraps it. Once devices have what they need of the kernel
/// before a guest runs, `hook` takes from the thread what that took.
pub(super) fn sort_fds(
    hypervisor: Hypervisor,
    create: Create,
    fds: Vec<OwnedFd>,
    hook: &ThreadHook,
) -> Result<Inputs, ProcessError> {
    let plan = create.plan;
    // Before there are other threads, which take after this one.
    let placement = Placement::take(plan.placement, &plan.nodes, plan.cpu.count());
    let mut boot = BootFds::default();
    let mut of_devices: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
    let mut console = ConsoleFds::default();
    let mut snapshot = SnapshotFds::default();
    let (mut crash_dump, mut debugger, mut container) = (None, None, None);
    for (role, fd) in create.fds.into_iter().zip(fds) {
        match role {
            FdRole::Kernel { name } => boot.kernel = Some((name, fd.into())),
            FdRole::Initrd => boot.initrd = Some(fd.into()),
            FdRole::Firmware { name } => boot.firmware = Some((name, fd.into())),
            FdRole::Device { name } => of_devices.entry(name).or_default().push(fd),
            FdRole::VfioContainer => container = Some(fd),
            FdRole::SnapshotState => snapshot.state = Some(fd.into()),
            FdRole::SnapshotRam => snapshot.ram = Some(fd.into()),
            FdRole::CrashDump => crash_dump = Some(fd.into()),
            FdRole::ConsoleInput => console.input = Some(fd),
            FdRole::ConsoleOutput => console.output = Some(fd),
            FdRole::ConsoleListener => console.listener = Some(fd),
            FdRole::ConsoleLog => console.log = Some(fd.into()),
            FdRole::Debugger => debugger = Some(fd),
        }
    }
    let boot = boot.open(&plan.boot, create.cmdline)?;
    let devices = (plan.devices.iter())
        .map(|device| {
            let descriptors = of_devices.remove(&device.name).unwrap_or_default();
            let name = device.name.clone();
            let spec = device.options.clone().spec(name, descriptors)?;
            Ok(DeviceResource {
                pci_slot: device.pci_slot,
                spec,
            })
        })
        .collect::<Result<_, BuildError>>()?;
    let host_devices = (plan.host_devices.iter())
        .map(|device| open_host_device(device, of_devices.remove(&device.name)))
        .collect::<Result<_, ProcessError>>()?;
    block::set_aside(plan.free_slots());
    let watches_data = || debug::watches_data(hypervisor.kvm(), &create.host_cpu);
    let seat = debugger.as_ref().map(|_| Seat::new(watches_data()));
    let seat = seat.transpose().map_err(ProcessError::Epoll)?;
    hook(match debugger {
        Some(_) => ThreadRole::DebuggedMachine,
        None => ThreadRole::Machine,
    })?;
    trace::mark("device resources");
    let ram = Ram::map(&plan.memory, &plan.nodes)?;
    let saved = snapshot.load(&ram)?;
    if plan.placement.realtime != 0 {
        ram.lock();
    }
    if !plan.host_devices.is_empty() {
        let container = container.ok_or_else(|| ProcessError::missing("VFIO container"))?;
        ram.share(Dma::new(container))?;
    }
    trace::mark("memory");
    let queue = Arc::new(ConsoleQueue::new().map_err(ProcessError::Epoll)?);
    let console = Console::new(queue.clone(), console.open().map_err(ProcessError::Epoll)?);
    let resources = Resources {
        hypervisor,
        host_cpu: create.host_cpu,
        ram,
        boot,
        devices,
        host_devices,
        new_mac: create.new_mac,
        crash_dump,
        console: queue,
        placement,
        watchdog_fired: Arc::default(),
        signals: Arc::new(Signals::new().map_err(ProcessError::Epoll)?),
        host_errors: Arc::new(HostErrors::new().map_err(ProcessError::Epoll)?),
        fallbacks: Arc::default(),
        steward: Steward::start().map_err(ProcessError::Steward)?,
        seat: seat.map(Arc::new),
    };
    Ok(Inputs {
        plan,
        saved,
        resources,
        console: match create.boot_trace {
            true => console.marking(),
            false => console,
        },
        debugger,
        exit_on_reboot: create.exit_on_reboot,
        boot_trace: create.boot_trace,
    })
}
