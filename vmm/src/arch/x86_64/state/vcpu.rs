//! One vCPU: registers, floating-point and vector state, local APIC, what is about to happen to it.

use devices::state::State;
use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::super::clock;
use super::StateError;
use super::msrs::{self, SavedMsrs};
use crate::kvm::api::KvmError;

/// A vCPU that does not run. Its CPUID table is the machine's.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// All of it: the process asks the kernel for no state beyond (`KVM_CAP_XSAVE2`).
    xsave: Box<kvm_xsave>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    mp: kvm_mp_state,
}

impl State for VcpuState {
    const KIND: &'static str = "x86-64 vCPU";
    const VERSION: u32 = 1;
}

impl VcpuState {
    /// Reads it all.
    pub fn save(vcpu: &VcpuFd, msrs: &SavedMsrs) -> Result<Self, StateError> {
        let sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
        if runs_guests(&sregs) {
            return Err(StateError::Nested);
        }
        Ok(Self {
            // First, since it settles events that the local APIC holds back.
            mp: vcpu
                .get_mp_state()
                .map_err(KvmError::call("KVM_GET_MP_STATE"))?,
            regs: vcpu.get_regs().map_err(KvmError::call("KVM_GET_REGS"))?,
            sregs,
            xsave: Box::new(vcpu.get_xsave().map_err(KvmError::call("KVM_GET_XSAVE"))?),
            xcrs: vcpu.get_xcrs().map_err(KvmError::call("KVM_GET_XCRS"))?,
            debug: vcpu
                .get_debug_regs()
                .map_err(KvmError::call("KVM_GET_DEBUGREGS"))?,
            lapic: vcpu.get_lapic().map_err(KvmError::call("KVM_GET_LAPIC"))?,
            msrs: msrs.read(vcpu),
            events: vcpu
                .get_vcpu_events()
                .map_err(KvmError::call("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Puts it into a vCPU that has its CPUID table and its time stamp counter, and has never run. Events and the multiprocessor
    /// state come after the local APIC, of which they say the rest.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        // Registers can be set in any state, but only a runnable vCPU takes all of them.
        self.set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE)?;
        vcpu.set_regs(&self.regs)
            .map_err(KvmError::call("KVM_SET_REGS"))?;
        vcpu.set_sregs(&self.sregs)
            .map_err(KvmError::call("KVM_SET_SREGS"))?;
        // SAFETY: the structure is as large as the kernel reads, unless dynamic features are asked
        // for by arch_prctl(2), which nothing here does.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(KvmError::call("KVM_SET_XSAVE"))?;
        if self.xcrs.nr_xcrs > 0 {
            vcpu.set_xcrs(&self.xcrs)
                .map_err(KvmError::call("KVM_SET_XCRS"))?;
        }
        vcpu.set_debug_regs(&self.debug)
            .map_err(KvmError::call("KVM_SET_DEBUGREGS"))?;
        vcpu.set_lapic(&self.lapic)
            .map_err(KvmError::call("KVM_SET_LAPIC"))?;
        msrs::write(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(KvmError::call("KVM_SET_VCPU_EVENTS"))?;
        clock::tell_of_pause(vcpu);
        self.set_mp_state(vcpu, self.mp.mp_state)
    }

    fn set_mp_state(&self, vcpu: &VcpuFd, mp_state: u32) -> Result<(), StateError> {
        vcpu.set_mp_state(kvm_mp_state { mp_state })
            .map_err(KvmError::call("KVM_SET_MP_STATE"))?;
        Ok(())
    }
}

/// CR4.VMXE or EFER.SVME.
fn runs_guests(sregs: &kvm_sregs) -> bool {
    sregs.cr4 & 1 << 13 != 0 || sregs.efer & 1 << 12 != 0
}

#[cfg(test)]
mod tests {
    use devices::GuestMemory;
    use devices::state::Saved;
    use devices::state::conformance::{Script, compare};
    use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
    use kvm_ioctls::{Kvm, VcpuExit, VmFd};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

    use super::super::super::boot::EntryPoint;
    use super::super::super::{regs, vm};
    use super::super::VmState;
    use super::*;

    const SIZE: usize = 1 << 20;
    const CODE: u64 = 0x1_0000;
    /// Where the guest says how far it is.
    const PORT: u16 = 0xf4;
    /// `inc al; out 0xf4, al; jmp` to the first.
    const COUNTER: [u8; 6] = [0xfe, 0xc0, 0xe6, PORT as u8, 0xeb, 0xfa];

    struct Machine {
        // Dropped in this order.
        vcpu: VcpuFd,
        vm: VmFd,
        memory: GuestMemory,
    }

    impl Machine {
        fn new(kvm: &Kvm) -> Self {
            let memory = GuestMemory::from_ranges(&[(GuestAddress(0), SIZE)]).expect("memory");
            memory
                .write_slice(&COUNTER, GuestAddress(CODE))
                .expect("code");
            let vm = crate::kvm::api::create_uninterrupted(kvm).expect("VM");
            for region in memory.iter() {
                let slot = kvm_userspace_memory_region {
                    slot: 0,
                    flags: 0,
                    guest_phys_addr: region.start_addr().0,
                    memory_size: region.len(),
                    userspace_addr: region.as_ptr() as u64,
                };
                // SAFETY: the range is a mapping that self owns and drops after the VM.
                unsafe { vm.set_user_memory_region(slot) }.expect("slot");
            }
            vm::prepare(&vm).expect("interrupt controllers");
            let vcpu = vm.create_vcpu(0).expect("vCPU");
            let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
            vcpu.set_cpuid2(&cpuid.expect("table")).expect("CPUID");
            Self { vcpu, vm, memory }
        }

        fn boot(&self) {
            regs::set_msrs(&self.vcpu).expect("MSRs");
            regs::set_local_interrupts(&self.vcpu).expect("local APIC");
            let entry = EntryPoint::Pvh { ip: CODE };
            regs::set_entry(&self.vcpu, &self.memory, entry).expect("entry");
        }

        /// The next number that the guest says, with the access completed.
        fn next(&mut self) -> u8 {
            let number = loop {
                match self.vcpu.run() {
                    Ok(VcpuExit::IoOut(PORT, data)) => break data[0],
                    Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                    other => panic!("{other:?}"),
                }
            };
            self.vcpu.set_kvm_immediate_exit(1);
            let _ = self.vcpu.run();
            self.vcpu.set_kvm_immediate_exit(0);
            number
        }
    }

    fn set_lstar(vcpu: &VcpuFd, value: u64) {
        msrs::write(vcpu, &[(0xc000_0082, value)]).expect("LSTAR");
    }

    /// What a file would keep of it.
    fn kept<S: State>(state: &S) -> S {
        let saved = serde_json::to_vec(&Saved::new(state).expect("saved")).expect("JSON");
        let saved: Saved = serde_json::from_slice(&saved).expect("an envelope");
        saved.state().expect("its own")
    }

    /// A guest that counts.
    struct Counting {
        kvm: Kvm,
        machine: Machine,
    }

    impl Script for Counting {
        /// The number, registers, and those registers that KVM lists.
        type Seen = (u8, kvm_regs, kvm_sregs, Vec<(u32, u64)>);

        const STEPS: usize = 6;

        fn new() -> Option<Self> {
            let kvm = crate::kvm::api::for_test()?;
            let machine = Machine::new(&kvm);
            machine.boot();
            set_lstar(&machine.vcpu, 0xffff_8000_1234_5678);
            Some(Self { kvm, machine })
        }

        fn step(&mut self, _: usize) -> Self::Seen {
            let number = self.machine.next();
            let msrs = SavedMsrs::of(&self.kvm).expect("MSR list");
            let VcpuState {
                regs, sregs, msrs, ..
            } = VcpuState::save(&self.machine.vcpu, &msrs).expect("saved");
            (number, regs, sregs, msrs)
        }

        fn replace(&mut self) {
            let msrs = SavedMsrs::of(&self.kvm).expect("MSR list");
            let old = &self.machine;
            let vcpu = kept(&VcpuState::save(&old.vcpu, &msrs).expect("saved"));
            let shared = kept(&VmState::save(&old.vm).expect("saved"));
            let new = Machine::new(&self.kvm);
            let mut bytes = vec![0; SIZE];
            let all = GuestAddress(0);
            old.memory.read_slice(&mut bytes, all).expect("RAM");
            new.memory.write_slice(&bytes, all).expect("RAM");
            shared.restore(&new.vm).expect("restored");
            vcpu.restore(&new.vcpu).expect("restored");
            self.machine = new;
        }
    }

    #[test]
    fn a_guest_goes_on_in_another_machine_as_if_nothing_had_been() {
        compare::<Counting>();
    }

    #[test]
    fn saving_changes_nothing_and_keeps_what_the_guest_has_set() {
        let Some(mut guest) = Counting::new() else {
            return;
        };
        for number in 1..=3 {
            let (seen, _, _, msrs) = guest.step(0);
            assert_eq!(seen, number);
            assert!(msrs.contains(&(0xc000_0082, 0xffff_8000_1234_5678)));
        }
    }

    #[test]
    fn who_runs_guests_cannot_be_saved_and_impossible_registers_are_named() {
        let Some(kvm) = crate::kvm::api::for_test() else {
            return;
        };
        let machine = Machine::new(&kvm);
        machine.boot();
        let sregs = machine.vcpu.get_sregs().expect("registers");
        assert!(!runs_guests(&sregs));
        assert!(runs_guests(&kvm_sregs {
            efer: 1 << 12,
            ..sregs
        }));
        let error = msrs::write(&machine.vcpu, &[(0x4444_4444, 1)]).expect_err("no such MSR");
        assert!(error.to_string().contains("0x44444444"), "{error}");
    }
}
