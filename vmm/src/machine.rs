//! One machine from its first memory slot to its last vCPU exit. A guest reset ends one machine
//! and begins another from the same [`Resources`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use devices::bus::{Bus, InsertError};
use devices::legacy::power::{PowerControl, Signals};
use devices::legacy::serial::{ConsoleQueue, SerialConsole};
use devices::pci::PciFunction;
use devices::thread::ThreadHook;
use devices::virtio::block::{BlockSpec, BuildBlockError};
use devices::virtio::net::{Backend, BuildNetError, NetSpec};
use devices::virtio::pci::{CreateFunctionError, VirtioPciContext, VirtioPciFunction};
use devices::virtio::rng::Rng;
use devices::virtio::{DeviceStats, VirtioDevice};
use kvm_ioctls::{Kvm, VmFd};
use thiserror::Error;

use crate::arch::boot::{self, BootError, BootSource, EntryPoint};
use crate::arch::clock;
use crate::arch::cpu::{self, CpuError, HostCpu, Processors, RegisterError};
use crate::arch::layout;
use crate::arch::platform::Platform;
use crate::interrupts::KvmInterrupts;
use crate::kvm::{Hypervisor, KvmError};
use crate::memory::Ram;
use crate::pci::{AttachError, Ecam, PciRoot, Window};
use crate::plan::{BootPlan, DiskPlan, MachinePlan, NicPlan};
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
    /// Kernel image, if the plan boots one.
    pub kernel: Option<File>,
    /// Initial RAM disk.
    pub initrd: Option<File>,
    /// Images, by disk index.
    pub disks: Vec<File>,
    /// What NICs are connected to, by NIC index.
    pub nics: Vec<Backend>,
    /// Console output queue.
    pub console: Arc<ConsoleQueue>,
    /// What the guest asks of the machine.
    pub signals: Arc<Signals>,
    /// Makes threads and connects interrupts.
    pub steward: Arc<Steward>,
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
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// There is no kernel.
    #[error("podvisor cannot boot by firmware yet; it needs a kernel")]
    Firmware,
    /// Registers.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] BuildBlockError),
    /// A NIC.
    #[error(transparent)]
    Nic(#[from] BuildNetError),
    /// A PCI function.
    #[error(transparent)]
    Function(#[from] CreateFunctionError),
    /// The PCI bus.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Fixed addresses.
    #[error(transparent)]
    Bus(#[from] InsertError),
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

/// A built machine. Dropping it stops everything and closes the VM.
pub struct Machine {
    // Field order is drop order: vCPUs end before devices, devices before the VM.
    vcpus: Vcpus,
    pci: Arc<PciRoot>,
    power: Arc<PowerControl>,
    serial: Arc<SerialConsole>,
    vm: Arc<VmFd>,
    processors: Processors,
    /// The clocks in the pause under way.
    clocks: Option<clock::Stopped>,
}

impl Machine {
    /// Builds the machine with its vCPUs parked. `resources` must outlive it.
    pub fn build(
        plan: &MachinePlan,
        resources: &mut Resources,
        hook: &ThreadHook,
    ) -> Result<Self, BuildError> {
        let vm = resources.hypervisor.create_vm(&resources.ram)?;
        trace::mark("VM");
        let memory = resources.ram.memory().clone();
        let entry = load(plan, resources)?;
        trace::mark("kernel loaded");
        let pci = Arc::new(attach_devices(plan, resources, &vm, hook)?);
        let platform = Platform::new(&vm, &resources.console, &resources.signals)
            .map_err(BuildError::host("connect an interrupt line"))?;
        let (ports, mmio) = buses(&platform, &pci)?;
        trace::mark("devices");
        let kvm = resources.hypervisor.kvm();
        let processors = Processors::new(kvm, &resources.host_cpu, &plan.cpu)?;
        let vcpus = processors.create(&vm)?;
        if let Some(boot_vcpu) = vcpus.first() {
            cpu::set_entry(boot_vcpu, &memory, entry)?;
        }
        trace::mark("vCPUs");
        let vcpus = Vcpus::spawn(vcpus, ports, mmio, memory, hook)?;
        trace::mark("threads");
        Ok(Self {
            vcpus,
            pci,
            power: platform.power,
            serial: platform.serial,
            vm,
            processors,
            clocks: None,
        })
    }

    /// The vCPUs, for their events.
    pub fn vcpus(&self) -> &Vcpus {
        &self.vcpus
    }

    /// The serial port, for its input.
    pub fn serial(&self) -> &SerialConsole {
        &self.serial
    }

    /// Lets a new machine run.
    pub fn start(&self) {
        self.vcpus.run();
    }

    /// Returns when vCPUs and devices stand still; the guest's clocks stop.
    pub fn pause(&mut self) {
        self.vcpus.park();
        self.pci.for_each(PciFunction::pause);
        self.clocks = Some(clock::Stopped::at(&self.vm, &self.vcpus));
    }

    /// Goes on where [`Machine::pause`] stopped.
    pub fn resume(&mut self, kvm: &Kvm) {
        if let Some(clocks) = self.clocks.take() {
            clocks.go_on(kvm, &self.vm, &self.vcpus, &self.processors);
        }
        self.pci.for_each(PciFunction::resume);
        self.vcpus.run();
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&self) {
        self.power.press_power_button();
    }

    /// Sets the link state of the NIC called `nic`; false if there is none.
    pub fn set_link(&self, nic: &str, up: bool) -> bool {
        let mut found = false;
        self.pci.for_each(|function| {
            if function.name() == nic {
                function.set_link(up);
                found = true;
            }
        });
        found
    }

    /// Counters of all devices by name.
    pub fn device_stats(&self) -> BTreeMap<String, DeviceStats> {
        let mut stats = BTreeMap::new();
        self.pci.for_each(|function| {
            stats.insert(function.name().to_owned(), function.stats());
        });
        stats
    }

    /// Stops vCPUs and devices for good; requests in flight are completed first.
    pub fn stop(self) {
        self.vcpus.park();
        self.pci.for_each(PciFunction::shutdown);
    }
}

/// Fills guest memory with what the plan boots.
fn load(plan: &MachinePlan, resources: &mut Resources) -> Result<EntryPoint, BuildError> {
    let (BootPlan::Linux { cmdline }, Some(kernel)) = (&plan.boot, &mut resources.kernel) else {
        return Err(BuildError::Firmware);
    };
    let source = BootSource {
        kernel,
        initrd: resources.initrd.as_mut(),
        cmdline,
        cpu: &plan.cpu,
        ram_bytes: resources.ram.bytes(),
    };
    Ok(boot::load(resources.ram.memory(), source)?)
}

/// Ports and memory of everything.
fn buses(platform: &Platform, pci: &Arc<PciRoot>) -> Result<(Bus, Bus), InsertError> {
    let (mut ports, mut mmio) = (Bus::new(), Bus::new());
    platform.attach(&mut ports, &mut mmio, pci)?;
    mmio.insert(
        layout::PCI_WINDOW,
        layout::PCI_WINDOW_SIZE,
        Arc::new(Window(pci.clone())),
    )?;
    mmio.insert(layout::ECAM, layout::ECAM_SIZE, Arc::new(Ecam(pci.clone())))?;
    Ok((ports, mmio))
}

/// Builds the virtio devices in the plan's order: disks, NICs, the others.
fn attach_devices(
    plan: &MachinePlan,
    resources: &Resources,
    vm: &Arc<VmFd>,
    hook: &ThreadHook,
) -> Result<PciRoot, BuildError> {
    let steward = resources.steward.clone();
    let interrupts = Arc::new(KvmInterrupts::new(vm.clone(), steward.clone()));
    let context = VirtioPciContext {
        mem: resources.ram.memory().clone(),
        router: interrupts.clone(),
        doorbells: interrupts,
        thread_hook: hook.clone(),
        executor: steward,
    };
    let mut pci = PciRoot::new();
    plan.nics
        .iter()
        .filter_map(|nic| nic.pci_slot)
        .for_each(|slot| pci.reserve(slot));
    let mut attach = |device: Box<dyn VirtioDevice>, slot| -> Result<(), BuildError> {
        let function = VirtioPciFunction::new(device, context.clone())?;
        match slot {
            Some(slot) => pci.attach_at(slot, function)?,
            None => pci.attach(function)?,
        };
        Ok(())
    };
    for (disk, file) in plan.disks.iter().zip(&resources.disks) {
        let file = file
            .try_clone()
            .map_err(BuildError::host("duplicate a disk's descriptor"))?;
        attach(Box::new(block_spec(disk, file).build()?), None)?;
    }
    for (nic, backend) in plan.nics.iter().zip(&resources.nics) {
        let backend = backend
            .try_clone()
            .map_err(BuildError::host("duplicate a TAP's descriptor"))?;
        attach(Box::new(net_spec(nic, backend).build()?), nic.pci_slot)?;
    }
    if plan.rng {
        attach(Box::new(Rng::new("rng")), None)?;
    }
    Ok(pci)
}

fn block_spec(plan: &DiskPlan, file: File) -> BlockSpec {
    BlockSpec {
        name: plan.name.clone(),
        file,
        read_only: plan.read_only,
        cache: plan.cache,
        serial: plan.serial.clone(),
        logical_block_size: plan.logical_block_size,
        physical_block_size: plan.physical_block_size,
        discard_granularity: plan.discard_granularity,
        discard: plan.discard,
        queues: plan.queues,
    }
}

fn net_spec(plan: &NicPlan, backend: Backend) -> NetSpec {
    NetSpec {
        name: plan.name.clone(),
        mac: plan.mac,
        mtu: plan.mtu,
        queue_pairs: plan.queue_pairs,
        backend,
        link_up: plan.link_up,
        lease: plan.lease.clone(),
        lease6: plan.lease6.clone(),
        spoof_check: plan.spoof_check,
    }
}
