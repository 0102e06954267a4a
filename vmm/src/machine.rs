//! One machine from its first memory slot to its last vCPU exit. A guest reset ends one machine
//! and begins another from the same [`Resources`].

mod saved;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use devices::bus::{Bus, InsertError};
use devices::host_errors::HostErrors;
use devices::legacy::power::{PowerControl, Signals};
use devices::legacy::serial::{ConsoleQueue, SerialConsole};
use devices::pci::PciFunction;
use devices::thread::ThreadHook;
use devices::vfio::{VfioContext, VfioFunction};
use devices::virtio::CommandError;
use devices::virtio::pci::{CreateFunctionError, VirtioPciContext, VirtioPciFunction};
use devices::virtio::spec::{BuildDeviceError, DeviceSpec};
use devices::watchdog::{Watchdog, WatchdogFunction};
use kvm_ioctls::{DeviceFd, Kvm, VmFd};
use serde_json::Value;
use thiserror::Error;

use crate::arch::boot::{self, BootError, BootSource, EntryPoint};
use crate::arch::clock;
use crate::arch::cpu::{self, CpuError, HostCpu, Processors, RegisterError};
use crate::arch::layout;
use crate::arch::platform::Platform;
use crate::debug::Seat;
use crate::fallbacks::Fallbacks;
use crate::host_devices::{self, HostDeviceResource, KvmWindows};
use crate::interrupts::{KvmInterrupts, Line};
use crate::kvm::{Hypervisor, KvmError};
use crate::memory::Ram;
use crate::payload::Boot;
use crate::pci::{self, AttachError, Ecam, Function, HotplugSlots, PciRoot, Window};
use crate::placement::Placement;
use crate::plan::{BootPlan, MachinePlan};
use crate::snapshot::{SavedMachine, SnapshotError};
use crate::steward::Steward;
use crate::trace;
use crate::vcpu::{SpawnError, Vcpus};

/// What outlives a reset: opened once, by the launcher.
pub struct Resources {
    /// The hypervisor.
    pub hypervisor: Hypervisor,
    /// What it can show guests of the host's processor.
    pub host_cpu: HostCpu,
    /// Guest RAM.
    pub ram: Ram,
    /// CPUs of the vCPUs.
    pub placement: Placement,
    /// What the next machine boots. One of a disk is good for one boot; others stay.
    pub boot: Option<Boot>,
    /// What devices are made from.
    pub devices: Vec<DeviceResource>,
    /// Devices of the host.
    pub host_devices: Vec<HostDeviceResource>,
    /// A machine from a snapshot may have other MAC addresses than its guest knows.
    pub new_mac: bool,
    /// Empty file for RAM and registers of a guest that has crashed.
    pub crash_dump: Option<File>,
    /// Console output queue.
    pub console: Arc<ConsoleQueue>,
    /// What the guest asks of the machine.
    pub signals: Arc<Signals>,
    /// The watchdog has ended a machine, which the next one's guest may ask.
    pub watchdog_fired: Arc<AtomicBool>,
    /// What the host cannot do for devices.
    pub host_errors: Arc<HostErrors>,
    /// What devices do without.
    pub fallbacks: Arc<Fallbacks>,
    /// Makes threads and connects interrupts.
    pub steward: Arc<Steward>,
    /// A debugger's, if one may come.
    pub seat: Option<Arc<Seat>>,
}

/// What a device is made from, and where it sits.
pub struct DeviceResource {
    /// Device number on the PCI bus.
    pub pci_slot: u8,
    /// The device.
    pub spec: Box<dyn DeviceSpec>,
}

/// What each device is made with.
struct Workshop {
    context: VirtioPciContext,
    host_errors: Arc<HostErrors>,
    fallbacks: Arc<Fallbacks>,
}

/// A machine cannot be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] crate::memory::MemoryError),
    /// The processors' features.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The kernel or the firmware.
    #[error("Cannot boot the {name}")]
    Boot {
        /// What it is, and what it is called.
        name: String,
        /// The cause.
        #[source]
        source: BootError,
    },
    /// What tells a guest that it is another one.
    #[error(transparent)]
    Generation(#[from] BootError),
    /// There is no kernel.
    #[error("The launcher sent no kernel")]
    NoKernel,
    /// Registers.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// A device.
    #[error(transparent)]
    Device(#[from] BuildDeviceError),
    /// A device of the host.
    #[error("Cannot {action} the host device {name:?}")]
    HostDevice {
        /// What was tried.
        action: &'static str,
        /// The device.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is no room behind guest RAM for what host devices have.
    #[error("The guest has no addresses for the memory of its host devices")]
    HighWindow,
    /// A PCI function.
    #[error(transparent)]
    Function(#[from] CreateFunctionError),
    /// The PCI bus.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Fixed addresses.
    #[error(transparent)]
    Bus(#[from] InsertError),
    /// The snapshot that it is to be restored from.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// vCPU threads.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Descriptors or interrupt lines.
    #[error("Cannot {action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl BuildError {
    fn host(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { action, source }
    }
}

/// What began to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// A guest's first instruction.
    New,
    /// A guest from a snapshot.
    Restored,
}

/// A built machine. Dropping it stops everything and closes the VM.
pub struct Machine {
    // Field order is drop order: vCPUs end before devices, devices before the VM.
    vcpus: Vcpus,
    pci: Arc<PciRoot>,
    /// What devices that come later are made with.
    workshop: Workshop,
    /// The slots for them, if there are any.
    hotplug: Option<Arc<HotplugSlots>>,
    platform: Platform,
    watchdog: Option<Arc<Watchdog>>,
    /// What KVM knows of the host's devices.
    _kvm_vfio: Option<DeviceFd>,
    vm: Arc<VmFd>,
    seat: Option<Arc<Seat>>,
    processors: Processors,
    /// The clocks in the pause under way; a restored machine begins in one.
    clocks: Option<clock::Stopped>,
    /// It has not run since it was restored.
    restored: bool,
}

impl Machine {
    /// Builds the machine with its vCPUs parked: a new one, or what was saved, whose RAM `resources`
    /// has. `resources` must outlive it.
    pub fn build(
        plan: &MachinePlan,
        resources: &mut Resources,
        hook: &ThreadHook,
        saved: Option<&SavedMachine>,
    ) -> Result<Self, BuildError> {
        if let Some(saved) = saved {
            saved::check(saved, plan, resources)?;
        }
        let vm = resources.hypervisor.create_vm(&resources.ram)?;
        trace::mark("VM");
        let memory = resources.ram.memory().clone();
        let high_window = high_window(resources)?;
        let entry = match saved {
            None => Some(load(plan, resources, &high_window)?),
            Some(_) => None,
        };
        boot::renew_generation(&memory)?;
        trace::mark("kernel loaded");
        let pci = Arc::new(PciRoot::new(high_window.clone()));
        let workshop = workshop(resources, &vm, hook);
        for device in &resources.devices {
            attach(&pci, &workshop, device, false)?;
        }
        let kvm_vfio = attach_host_devices(&pci, &workshop, resources, &vm, &high_window)?;
        let watchdog = attach_watchdog(&pci, plan, resources)?;
        let (console, signals) = (&resources.console, &resources.signals);
        let platform = Platform::new(&vm, console, signals, &plan.clock).map_err(
            BuildError::host("connect interrupt lines and set the clock"),
        )?;
        let hotplug = (!plan.hotplug_slots.is_empty()).then(|| {
            let (power, signals) = (platform.power.clone(), resources.signals.clone());
            Arc::new(HotplugSlots::new(pci.clone(), power, signals))
        });
        let (ports, mmio) = buses(&platform, &pci, &high_window, hotplug.as_ref())?;
        trace::mark("devices");
        let kvm = resources.hypervisor.kvm();
        let processors = Processors::new(kvm, &resources.host_cpu, &plan.cpu)?;
        let vcpus = processors.create(&vm)?;
        if let (Some(boot_vcpu), Some(entry)) = (vcpus.first(), entry) {
            cpu::set_entry(boot_vcpu, &memory, entry)?;
        }
        let mut clocks = None;
        if let Some(saved) = saved {
            clocks = Some(saved::restore(saved, &vm, &processors, &vcpus)?);
            saved::restore_devices(saved, &platform, &pci)?;
            platform.power.tell_generation();
        }
        trace::mark("vCPUs");
        let seat = resources.seat.clone();
        let vcpus = Vcpus::spawn(
            vcpus,
            ports,
            mmio,
            memory,
            (hook, &resources.placement),
            seat.clone(),
        )?;
        if let Some(seat) = &seat {
            seat.sit(vcpus.debugged());
        }
        trace::mark("threads");
        Ok(Self {
            vcpus,
            pci,
            workshop,
            hotplug,
            platform,
            watchdog,
            _kvm_vfio: kvm_vfio,
            vm,
            seat,
            processors,
            clocks,
            restored: saved.is_some(),
        })
    }

    /// The vCPUs, for their events.
    pub fn vcpus(&self) -> &Vcpus {
        &self.vcpus
    }

    /// The serial port, for its input.
    pub fn serial(&self) -> Arc<SerialConsole> {
        self.platform.serial.clone()
    }

    /// The power button.
    pub fn power(&self) -> Arc<PowerControl> {
        self.platform.power.clone()
    }

    /// The interrupt of the power button and of all other events, for when it is let go.
    pub fn power_line(&self) -> Arc<Line> {
        self.platform.power_line.clone()
    }

    /// The watchdog, if there is one, for its time.
    pub fn watchdog(&self) -> Option<Arc<Watchdog>> {
        self.watchdog.clone()
    }

    /// Lets a new machine run, or a restored one go on.
    pub fn start(&mut self, kvm: &Kvm) -> Started {
        if self.clocks.is_some() {
            self.resume(kvm);
            return Started::Restored;
        }
        self.vcpus.run();
        Started::New
    }

    /// Returns when vCPUs and devices stand still; the guest's clocks stop.
    pub fn pause(&mut self) {
        self.vcpus.park();
        self.pci.for_each(PciFunction::pause);
        self.clocks = Some(clock::Stopped::at(&self.vm, &self.vcpus));
    }

    /// Goes on where [`Machine::pause`] stopped. The clocks do so too, but those of a restored machine have
    /// run on.
    pub fn resume(&mut self, kvm: &Kvm) {
        if let Some(clocks) = self.clocks.take() {
            match std::mem::take(&mut self.restored) {
                true => clocks.catch_up(&self.vm),
                false => clocks.go_on(kvm, &self.vm, &self.vcpus, &self.processors),
            }
        }
        self.pci.for_each(PciFunction::resume);
        self.vcpus.run();
    }

    /// Adds a device and tells the guest.
    pub fn attach(&self, device: &DeviceResource) -> Result<(), BuildError> {
        attach(&self.pci, &self.workshop, device, self.clocks.is_some())?;
        if let Some(hotplug) = &self.hotplug {
            hotplug.insert(device.pci_slot);
        }
        Ok(())
    }

    /// Asks the guest for the device in this slot; it ejects it, or not.
    pub fn ask_for(&self, slot: u8) {
        if let Some(hotplug) = &self.hotplug {
            hotplug.ask(slot);
        }
    }

    /// Takes that back; false if the guest has ejected the device already.
    pub fn keep(&self, slot: u8) -> bool {
        let hotplug = self.hotplug.as_ref();
        hotplug.is_none_or(|hotplug| hotplug.withdraw(slot))
    }

    /// Removes the devices that the guest has ejected, after their requests in flight. Their slots.
    pub fn remove_ejected(&self) -> Vec<u8> {
        let ejected = self.hotplug.iter().flat_map(|slots| slots.take_ejected());
        ejected
            .inspect(|slot| {
                if let Some(mut function) = self.pci.detach(*slot) {
                    function.shutdown();
                }
            })
            .collect()
    }

    /// Has the device called `device` serve a command; `None` if there is none.
    pub fn command(&self, device: &str, order: Value) -> Option<Result<(), CommandError>> {
        let mut result = None;
        self.pci.for_each(|function| {
            if result.is_none() {
                result = function.command(device, &order);
            }
        });
        result
    }

    /// Counters of all devices by name.
    pub fn device_stats(&self) -> BTreeMap<String, Value> {
        let mut stats = BTreeMap::new();
        self.pci.for_each(|function| {
            stats.extend(function.stats());
        });
        stats
    }

    /// Stops vCPUs and devices for good; requests in flight are completed first.
    pub fn stop(self) {
        self.vcpus.park();
        self.pci.for_each(PciFunction::shutdown);
        if let Some(seat) = &self.seat {
            seat.rise();
        }
    }
}

/// Fills guest memory with what the plan boots. What comes from a disk is given back: it is read again
/// for the next boot, and the guest may have changed it by then.
fn load(
    plan: &MachinePlan,
    resources: &mut Resources,
    high_window: &Range<u64>,
) -> Result<EntryPoint, BuildError> {
    let boot = resources.boot.as_mut().ok_or(BuildError::NoKernel)?;
    let indexes = plan.devices.iter();
    let indexes = indexes.filter_map(|device| Some((device.pci_slot, device.acpi_index?)));
    let acpi_indexes: Vec<_> = indexes.collect();
    let source = BootSource {
        payload: &mut boot.payload,
        identity: &plan.identity,
        cpu: &plan.cpu,
        hotplug_slots: &plan.hotplug_slots,
        nodes: &plan.nodes,
        acpi_indexes: &acpi_indexes,
        ram_bytes: resources.ram.bytes(),
        high_window,
    };
    let loaded = boot::load(resources.ram.memory(), source);
    let entry = loaded.map_err(|source| BuildError::Boot {
        name: boot.to_string(),
        source,
    })?;
    if plan.boot == BootPlan::Disk {
        resources.boot = None;
    }
    Ok(entry)
}

/// Ports and memory of everything.
fn buses(
    platform: &Platform,
    pci: &Arc<PciRoot>,
    high_window: &Range<u64>,
    hotplug: Option<&Arc<HotplugSlots>>,
) -> Result<(Bus, Bus), InsertError> {
    let (mut ports, mut mmio) = (Bus::new(), Bus::new());
    platform.attach(&mut ports, &mut mmio, pci, hotplug)?;
    let low_window = layout::PCI_WINDOW..layout::PCI_WINDOW + layout::PCI_WINDOW_SIZE;
    for window in [&low_window, high_window] {
        if !window.is_empty() {
            let (root, base) = (pci.clone(), window.start);
            let len = window.end - window.start;
            mmio.insert(base, len, Arc::new(Window { root, base }))?;
        }
    }
    mmio.insert(layout::ECAM, layout::ECAM_SIZE, Arc::new(Ecam(pci.clone())))?;
    Ok((ports, mmio))
}

fn workshop(resources: &Resources, vm: &Arc<VmFd>, hook: &ThreadHook) -> Workshop {
    let steward = resources.steward.clone();
    let interrupts = Arc::new(KvmInterrupts::new(vm.clone(), steward.clone()));
    let context = VirtioPciContext {
        mem: resources.ram.memory().clone(),
        router: interrupts.clone(),
        doorbells: interrupts,
        thread_hook: hook.clone(),
        executor: steward,
    };
    Workshop {
        context,
        host_errors: resources.host_errors.clone(),
        fallbacks: resources.fallbacks.clone(),
    }
}

/// Makes a device and puts it into its slot, at the start and while the machine runs or is `paused`.
fn attach(
    pci: &PciRoot,
    workshop: &Workshop,
    device: &DeviceResource,
    paused: bool,
) -> Result<(), BuildError> {
    let mut made = device.spec.make()?;
    made.report_to(&workshop.host_errors);
    let (name, fallback) = (made.name().to_owned(), made.fallback());
    let mut function = VirtioPciFunction::new(made, workshop.context.clone())?;
    if paused {
        function.pause();
    }
    pci.attach(device.pci_slot, Function::Virtio(function))?;
    workshop.fallbacks.set(&name, fallback);
    Ok(())
}

/// Where BARs of host devices lie that are to be above 4 GiB.
fn high_window(resources: &Resources) -> Result<Range<u64>, BuildError> {
    let devices = resources.host_devices.iter();
    let sizes = devices.flat_map(|resource| resource.device.high_bars());
    let window = pci::high_window(resources.ram.bytes(), sizes);
    window.ok_or(BuildError::HighWindow)
}

/// Puts the host's devices into their slots, reset, and tells KVM of them.
fn attach_host_devices(
    pci: &PciRoot,
    workshop: &Workshop,
    resources: &Resources,
    vm: &Arc<VmFd>,
    high_window: &Range<u64>,
) -> Result<Option<DeviceFd>, BuildError> {
    if resources.host_devices.is_empty() {
        return Ok(None);
    }
    let steward = resources.steward.clone();
    let windows = KvmWindows::new(vm.clone(), steward.clone(), high_window.clone());
    let context = VfioContext {
        router: workshop.context.router.clone(),
        windows: Arc::new(windows),
        executor: steward,
    };
    for HostDeviceResource { pci_slot, device } in &resources.host_devices {
        let function = VfioFunction::new(device.clone(), context.clone());
        let function = function.map_err(|source| BuildError::HostDevice {
            action: "prepare",
            name: device.name().to_owned(),
            source,
        })?;
        pci.attach(*pci_slot, Function::Vfio(function))?;
    }
    let told = host_devices::tell_kvm(vm, &resources.host_devices);
    let told = told.map_err(BuildError::host("tell KVM of the host's devices"))?;
    Ok(Some(told))
}

fn attach_watchdog(
    pci: &PciRoot,
    plan: &MachinePlan,
    resources: &Resources,
) -> Result<Option<Arc<Watchdog>>, AttachError> {
    let Some(plan) = plan.watchdog else {
        return Ok(None);
    };
    let (signals, fired) = (&resources.signals, &resources.watchdog_fired);
    let function = WatchdogFunction::new(plan.action, signals.clone(), fired.clone());
    let watchdog = function.watchdog();
    pci.attach(plan.pci_slot, Function::Watchdog(function))?;
    Ok(Some(watchdog))
}
