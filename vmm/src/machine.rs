//! One machine from its first memory slot to its last vCPU exit. A guest reset ends one machine
//! and begins another from the same [`Resources`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use devices::bus::{Bus, InsertError};
use devices::legacy::cmos::{self, Cmos};
use devices::legacy::power::{self, PowerControl, ResetPort, Signals};
use devices::legacy::pvpanic::{self, PvPanic};
use devices::legacy::serial::{self, ConsoleQueue, SerialConsole};
use devices::pci::PciFunction;
use devices::thread::ThreadHook;
use devices::virtio::block::{BlockSpec, BuildBlockError};
use devices::virtio::net::{Backend, BuildNetError, NetSpec};
use devices::virtio::pci::{CreateFunctionError, VirtioPciContext, VirtioPciFunction};
use devices::virtio::rng::Rng;
use devices::virtio::{DeviceStats, VirtioDevice};
use kvm_bindings::{CpuId, kvm_clock_data};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use thiserror::Error;

use crate::boot::{self, BootError, BootSource};
use crate::cpu::cpuid::{CpuidError, CpuidLeaf, CpuidTemplate, Topology};
use crate::cpu::regs::{self, RegisterError};
use crate::cpu::tsc;
use crate::cpu::{SpawnError, Vcpus};
use crate::interrupts::{KvmInterrupts, Line};
use crate::kvm::{Hypervisor, KvmError};
use crate::layout;
use crate::memory::Ram;
use crate::pci::{AttachError, ConfigPorts, Ecam, PciRoot, Window};
use crate::plan::{DiskPlan, MachinePlan, NicPlan};
use crate::steward::Steward;
use crate::trace;

/// What outlives a reset: opened once, by the launcher.
pub struct Resources {
    /// The hypervisor.
    pub hypervisor: Hypervisor,
    /// What it can show guests by CPUID.
    pub cpuid: Vec<CpuidLeaf>,
    /// Guest RAM.
    pub ram: Ram,
    /// Kernel image.
    pub kernel: File,
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
    /// CPUID.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
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

/// The guest's clocks when it was paused.
struct Pause {
    clock: Option<kvm_clock_data>,
    /// The host's time stamp counter.
    host_tsc: u64,
    /// The vCPUs' from there; none where KVM does not tell.
    tsc_offsets: Vec<u64>,
}

/// A built machine. Dropping it stops everything and closes the VM.
pub struct Machine {
    // Field order is drop order: vCPUs end before devices, devices before the VM.
    vcpus: Vcpus,
    pci: Arc<PciRoot>,
    power: Arc<PowerControl>,
    serial: Arc<SerialConsole>,
    vm: Arc<VmFd>,
    /// What vCPU 0 sees of its processor.
    cpuid: CpuId,
    /// The pause under way.
    pause: Option<Pause>,
}

impl Machine {
    /// Builds the machine with its vCPUs parked. `resources` must outlive it.
    pub fn build(
        plan: &MachinePlan,
        resources: &mut Resources,
        hook: &ThreadHook,
    ) -> Result<Self, BuildError> {
        let topology = Topology::new(&plan.cpu);
        let apic_ids = topology.apic_ids();
        let vm = resources.hypervisor.create_vm(&resources.ram)?;
        trace::mark("VM");
        let memory = resources.ram.memory().clone();
        let entry = boot::load(
            &memory,
            BootSource {
                kernel: &mut resources.kernel,
                initrd: resources.initrd.as_mut(),
                cmdline: &plan.cmdline,
                apic_ids: &apic_ids,
                ram_bytes: resources.ram.bytes(),
            },
        )?;
        trace::mark("kernel loaded");
        let pci = Arc::new(attach_devices(plan, resources, &vm, hook)?);
        let legacy = Legacy::new(&vm, resources)?;
        let ports = legacy.ports(&pci)?;
        let mmio = mmio_bus(&pci)?;
        trace::mark("devices");
        let template = CpuidTemplate::new(&resources.cpuid, &plan.cpu)?;
        template.verify(resources.hypervisor.kvm(), &plan.cpu)?;
        let vcpus = create_vcpus(&vm, &template, &apic_ids)?;
        if let Some(boot_vcpu) = vcpus.first() {
            regs::set_entry(boot_vcpu, &memory, entry)?;
        }
        trace::mark("vCPUs");
        let vcpus = Vcpus::spawn(vcpus, ports, mmio, memory, hook)?;
        trace::mark("threads");
        Ok(Self {
            vcpus,
            pci,
            power: legacy.power,
            serial: legacy.serial,
            vm,
            cpuid: template.for_vcpu(0),
            pause: None,
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
        self.pause = Some(Pause {
            clock: self.vm.get_clock().ok(),
            host_tsc: tsc::host(),
            tsc_offsets: self.vcpus.tsc_offsets().unwrap_or_default(),
        });
    }

    /// Goes on where [`Machine::pause`] stopped.
    pub fn resume(&mut self, kvm: &Kvm) {
        if let Some(pause) = self.pause.take() {
            self.restore_tsc(kvm, &pause);
            if let Some(mut clock) = pause.clock {
                // Only the time is to be set; the flags say what else the kernel reported.
                clock.flags = 0;
                if let Err(error) = self.vm.set_clock(&clock) {
                    tracing::warn!(%error, "guest clock jumps by the length of the pause");
                }
            }
        }
        self.pci.for_each(PciFunction::resume);
        self.vcpus.run();
    }

    /// Lets the vCPUs' time stamp counters go on from where they stood. Set and not shifted: a KVM
    /// whose host has unstable counters shifts them by itself. A guest that was not told that its
    /// counter is invariant does not use it as a clock, so a KVM without offsets does little harm.
    fn restore_tsc(&self, kvm: &Kvm, pause: &Pause) {
        match tsc::is_adjustable(kvm, &self.cpuid) {
            Ok(true) => {
                let ticks = tsc::host().wrapping_sub(pause.host_tsc);
                let offsets = pause.tsc_offsets.iter();
                let offsets: Vec<_> = offsets.map(|offset| offset.wrapping_sub(ticks)).collect();
                if let Err(error) = self.vcpus.set_tsc_offsets(&offsets) {
                    tracing::warn!(%error, "guest TSC jumps by the length of the pause");
                }
            }
            Ok(false) => {
                tracing::info!("this KVM's guests see the host's TSC, which ran on in the pause");
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "guest TSC jumps by the length of the pause");
            }
        }
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

fn create_vcpus(
    vm: &VmFd,
    template: &CpuidTemplate,
    apic_ids: &[u8],
) -> Result<Vec<VcpuFd>, BuildError> {
    (0..)
        .zip(apic_ids)
        .map(|(index, apic_id)| {
            let vcpu = vm
                .create_vcpu(u64::from(*apic_id))
                .map_err(KvmError::call("KVM_CREATE_VCPU"))?;
            vcpu.set_cpuid2(&template.for_vcpu(index))
                .map_err(KvmError::call("KVM_SET_CPUID2"))?;
            regs::set_msrs(&vcpu)?;
            regs::set_local_interrupts(&vcpu)?;
            Ok(vcpu)
        })
        .collect()
}

/// Devices at fixed ports.
struct Legacy {
    serial: Arc<SerialConsole>,
    power: Arc<PowerControl>,
    signals: Arc<Signals>,
}

impl Legacy {
    fn new(vm: &VmFd, resources: &Resources) -> Result<Self, BuildError> {
        let connect = |gsi| {
            Line::connect(vm, gsi)
                .map(Arc::new)
                .map_err(BuildError::host("connect an interrupt line"))
        };
        let serial = SerialConsole::new(&resources.console, connect(layout::GSI_SERIAL)?);
        let power = PowerControl::new(resources.signals.clone(), connect(layout::GSI_EVENTS)?);
        Ok(Self {
            serial: Arc::new(serial),
            power: Arc::new(power),
            signals: resources.signals.clone(),
        })
    }

    fn ports(&self, pci: &Arc<PciRoot>) -> Result<Bus, InsertError> {
        let mut ports = Bus::new();
        ports.insert(serial::PORT.into(), serial::LEN.into(), self.serial.clone())?;
        ports.insert(layout::POWER_PORTS.into(), power::LEN, self.power.clone())?;
        ports.insert(cmos::PORT, cmos::LEN, Arc::new(Cmos::default()))?;
        ports.insert(
            ResetPort::PORT,
            1,
            Arc::new(ResetPort::new(self.signals.clone())),
        )?;
        ports.insert(
            pvpanic::PORT.into(),
            1,
            Arc::new(PvPanic::new(self.signals.clone())),
        )?;
        ports.insert(
            layout::PCI_CONFIG_PORTS,
            layout::PCI_CONFIG_PORTS_LEN,
            Arc::new(ConfigPorts(pci.clone())),
        )?;
        Ok(ports)
    }
}

fn mmio_bus(pci: &Arc<PciRoot>) -> Result<Bus, InsertError> {
    let mut mmio = Bus::new();
    mmio.insert(
        layout::PCI_WINDOW,
        layout::PCI_WINDOW_SIZE,
        Arc::new(Window(pci.clone())),
    )?;
    mmio.insert(layout::ECAM, layout::ECAM_SIZE, Arc::new(Ecam(pci.clone())))?;
    Ok(mmio)
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
