//! State files that somebody has made or changed. Whatever they say, they are refused with a reason, or restored
//! into vCPU, interrupt controllers and clocks of a machine that does not run.

use std::cell::RefCell;
use std::error::Error;
use std::fs::File;
use std::io::{Read, Seek};
use std::sync::Arc;

use devices::legacy::power::Signals;
use devices::legacy::serial::ConsoleQueue;
use devices::state::{Saved, State};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vmm::arch::clock::Stopped;
use vmm::arch::cpu::HostCpu;
use vmm::arch::platform::Platform;
use vmm::arch::state::{SavedMsrs, VcpuState, VmState};
use vmm::memory::Ram;
use vmm::pci::{Function, PciRoot};
use vmm::plan::{
    BootPlan, ClockPlan, CpuPlan, HypervisorPlan, IdentityPlan, MachinePlan, MachineVersion,
    MemoryPlan, PlacementPlan,
};
use vmm::snapshot::{FileIdentity, SavedMachine, SnapshotError, compare, restore_part};

use crate::input::Input;
use crate::json;
use crate::memory;

thread_local! {
    static MACHINE: RefCell<Option<Machine>> = const { RefCell::new(None) };
}

/// What is restored, again and again, and its good state.
struct Machine {
    // Dropped in this order.
    platform: Platform,
    pci: PciRoot,
    vcpu: VcpuFd,
    vm: VmFd,
    disk: File,
    /// One page.
    ram: Ram,
    good: Value,
}

impl Machine {
    fn new() -> Self {
        let kvm = Kvm::new().expect("/dev/kvm");
        let vm = kvm.create_vm().expect("a VM");
        vm.create_irq_chip().expect("interrupt controllers");
        let vcpu = vm.create_vcpu(0).expect("a vCPU");
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.expect("CPUID");
        vcpu.set_cpuid2(&cpuid).expect("KVM's own CPUID");
        let console = Arc::new(ConsoleQueue::new().expect("an eventfd"));
        let signals = Arc::new(Signals::new().expect("an eventfd"));
        let platform =
            Platform::new(&vm, &console, &signals, &ClockPlan::default()).expect("lines");
        let msrs = SavedMsrs::of(&kvm).expect("MSRs");
        let disk = memory::file(0);
        let good = json!({
            "plan": plan(),
            "cpu": HostCpu::from(&cpuid),
            "vcpus": [Saved::new(&VcpuState::save(&vcpu, &msrs).expect("saved")).expect("JSON")],
            "vm": Saved::new(&VmState::save(&vm).expect("saved")).expect("JSON"),
            "clocks": {
                "kind": Stopped::KIND,
                "version": Stopped::VERSION,
                "state": {
                    "clock": vm.get_clock().expect("a clock"),
                    "host": {"tsc": 1, "wall": 1},
                    "tscOffsets": [0],
                },
            },
            "platform": platform.save().expect("saved"),
            "pci": PciRoot::<Function>::new(0..0).save().expect("saved"),
            "files": {"root": [FileIdentity::of(&disk).expect("a file")]},
        });
        let ram = Ram::map(
            &MemoryPlan {
                bytes: 4096,
                hugepage_size: None,
            },
            &[],
        );
        let machine = Self {
            platform,
            pci: PciRoot::new(0..0),
            vcpu,
            vm,
            disk,
            ram: ram.expect("RAM"),
            good,
        };
        machine.takes_its_own();
        machine
    }

    /// The good state is one.
    fn takes_its_own(&self) {
        let saved = SavedMachine::parse(&file(self.good.to_string().as_bytes()));
        let saved = saved.expect("its own state");
        let shared: VmState = saved.vm.state().expect("its own");
        shared.restore(&self.vm).expect("restored");
        let vcpu: VcpuState = saved.vcpus[0].state().expect("its own");
        vcpu.restore(&self.vcpu).expect("restored");
        let _: Stopped = saved.clocks.state().expect("its own");
        self.pci.restore(&saved.pci).expect("restored");
        self.platform.restore(&saved.platform).expect("restored");
    }

    /// Restores what can be.
    fn restore(&self, saved: SavedMachine) {
        let identities = saved.files.values().flatten();
        for identity in identities {
            identity.difference(&self.disk).expect("a readable file");
        }
        if let Some(shared) = told(restore_part::<VmState>(&saved.vm, "VM")) {
            tell(shared.restore(&self.vm));
        }
        for vcpu in &saved.vcpus {
            if let Some(vcpu) = told(restore_part::<VcpuState>(vcpu, "vCPU")) {
                tell(vcpu.restore(&self.vcpu));
            }
        }
        tell(self.platform.restore(&saved.platform));
        tell(self.pci.restore(&saved.pci));
        if let Some(clocks) = told(restore_part::<Stopped>(&saved.clocks, "clocks")) {
            clocks.restore_counters(std::slice::from_ref(&self.vcpu));
            clocks.catch_up(&self.vm);
        }
    }
}

fn plan() -> MachinePlan {
    MachinePlan {
        version: MachineVersion::default(),
        name: "default/fuzz".to_owned(),
        identity: IdentityPlan::default(),
        cpu: CpuPlan {
            sockets: 1,
            cores: 1,
            threads: 1,
            features: Vec::new(),
            model: None,
            hypervisor: HypervisorPlan::default(),
        },
        clock: ClockPlan::default(),
        memory: MemoryPlan {
            bytes: 1 << 30,
            hugepage_size: None,
        },
        boot: BootPlan::Linux {
            cmdline: String::new(),
        },
        devices: Vec::new(),
        host_devices: Vec::new(),
        watchdog: None,
        placement: PlacementPlan::default(),
        nodes: Vec::new(),
        hotplug_slots: Vec::new(),
        start_paused: false,
    }
}

/// What there is, or what is wrong with it, can be said.
fn told<T>(result: Result<T, SnapshotError>) -> Option<T> {
    match result {
        Ok(found) => Some(found),
        Err(error) => {
            tell(Err(error));
            None
        }
    }
}

/// What is wrong can be said.
fn tell(result: Result<(), impl Error>) {
    let mut error = result.as_ref().err().map(|error| error as &dyn Error);
    while let Some(cause) = error {
        assert!(!cause.to_string().is_empty());
        error = cause.source();
    }
}

/// A state file with these contents.
fn file(contents: &[u8]) -> Vec<u8> {
    let digest = Sha256::digest(contents);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    [
        format!("podvisor snapshot 3\n{digest}\n").as_bytes(),
        contents,
    ]
    .concat()
}

/// Reads the input as a file, as its contents, or as changes to a good one.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    MACHINE.with_borrow_mut(|machine| {
        let machine = machine.get_or_insert_with(Machine::new);
        let bytes = match input.below(8) {
            0 => input.take(usize::MAX).to_vec(),
            1 => file(input.take(usize::MAX)),
            _ => {
                let mut value = machine.good.clone();
                json::change(&mut value, &mut input);
                file(value.to_string().as_bytes())
            }
        };
        let saved = match SavedMachine::parse(&bytes) {
            Ok(saved) => saved,
            Err(error) => {
                assert!(error.is_refusal(), "{error:?}");
                return tell(Err(error));
            }
        };
        let saved = again(&saved, &machine.ram);
        tell(compare(&saved.plan, &saved.plan, false));
        machine.restore(saved);
    });
}

/// The same, written and read.
fn again(saved: &SavedMachine, ram: &Ram) -> SavedMachine {
    let (first, again) = through_files(saved, ram);
    let (second, again) = through_files(&again, ram);
    assert!(first == second, "another state");
    again
}

/// The state file, and what is read from it.
fn through_files(saved: &SavedMachine, ram: &Ram) -> (Vec<u8>, SavedMachine) {
    let (mut state, mut file) = (memory::file(0), memory::file(0));
    saved.write(&mut state, ram, &mut file).expect("written");
    let mut bytes = Vec::new();
    state.rewind().expect("a memfd");
    state.read_to_end(&mut bytes).expect("a memfd");
    let again = SavedMachine::read(&mut state, ram, &mut file).expect("its own");
    (bytes, again)
}
