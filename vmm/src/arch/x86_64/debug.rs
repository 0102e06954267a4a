//! What a debugger has of an x86 vCPU: its registers as gdb knows them, and the traps that stop it.

mod description;
mod registers;

use gdbstub::arch::Arch;
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, kvm_debug_exit_arch,
    kvm_guest_debug,
};
use kvm_ioctls::{Kvm, VcpuFd};

pub use self::registers::{Registers, read, write};
use super::cpu::HostCpu;
use super::probe::{Level, Probe};
use crate::debug::{Slot, Trap, Watched};
use crate::kvm::api::KvmError;

/// `int3`, which takes the place of an instruction's first byte.
pub const BREAKPOINT: [u8; 1] = [0xcc];

/// Addresses that the processor watches at a time: DR0 to DR3.
pub const SLOTS: usize = 4;

/// A debugger may come.
pub const IS_OFFERED: bool = true;

/// Bytes of a page, within which addresses are translated alike.
pub const PAGE: u64 = 4096;

/// Vectors of the debug exception and of `int3`.
const DEBUG: u32 = 1;

/// DR6: the conditions of the four slots, and a single step (Intel SDM volume 3, 18.2.3).
const HITS: u64 = 0xf;
const STEPPED: u64 = 1 << 14;

/// DR7: a bit that is always 1, and exact matches (18.2.4).
const DR7: u64 = 1 << 10 | 1 << 9;

/// gdb's idea of the architecture.
pub enum Processor {}

impl Arch for Processor {
    type Usize = u64;
    type Registers = Registers;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(&description::XML)
    }
}

/// What is asked of a vCPU's debugging hardware.
#[derive(Clone, Copy, Debug, Default)]
pub struct Control {
    /// Addresses that stop it.
    pub slots: [Option<Slot>; SLOTS],
    /// `int3` stops it.
    pub software: bool,
    /// It stops after one instruction, during which it takes no interrupt.
    pub step: bool,
    /// It gets this trap, which was its own.
    pub inject: Option<Trap>,
}

/// Sets it.
pub fn control(vcpu: &VcpuFd, wanted: &Control) -> Result<(), KvmError> {
    let mut debug = kvm_guest_debug::default();
    let mut flag = |flag: u32, is_set: bool| {
        if is_set {
            debug.control |= flag | KVM_GUESTDBG_ENABLE;
        }
    };
    flag(KVM_GUESTDBG_USE_SW_BP, wanted.software);
    flag(KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ, wanted.step);
    flag(
        KVM_GUESTDBG_USE_HW_BP,
        wanted.slots.iter().any(Option::is_some),
    );
    match wanted.inject {
        None => {}
        Some(Trap::Breakpoint { .. }) => flag(KVM_GUESTDBG_INJECT_BP, true),
        Some(Trap::Debug { .. }) => flag(KVM_GUESTDBG_INJECT_DB, true),
    }
    let registers = &mut debug.arch.debugreg;
    registers[7] = DR7;
    for (number, slot) in wanted.slots.iter().enumerate() {
        if let Some(slot) = slot {
            registers[number] = slot.address;
            registers[7] |= 0b10 << (2 * number) | condition(*slot) << (16 + 4 * number);
        }
    }
    vcpu.set_guest_debug(&debug)
        .map_err(KvmError::call("KVM_SET_GUEST_DEBUG"))
}

/// The four bits of DR7 that say what of an address is watched: kind, and length.
fn condition(slot: Slot) -> u64 {
    let kind = match slot.watched {
        Watched::Execution => 0b00,
        Watched::Writes => 0b01,
        // There is none for reads alone.
        Watched::Accesses => 0b11,
    };
    let length = match slot.bytes {
        2 => 0b01,
        4 => 0b11,
        8 => 0b10,
        _ => 0b00,
    };
    kind | length << 2
}

/// Whether this host's KVM stops a guest's kernel at data that is watched: one that interprets it does not look. Where
/// that cannot be found out it is believed to.
pub fn watches_data(kvm: &Kvm, host: &HostCpu) -> bool {
    // Without a table there will be no guest either.
    let Ok(table) = host.table() else {
        return true;
    };
    let probe = Probe::new(kvm, &table, Level::Kernel);
    let answer = probe.and_then(|mut probe| probe.watches_data());
    answer.unwrap_or_else(|error| {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "cannot find out whether data can be watched");
        true
    })
}

/// Where the guest has this virtual address, as the vCPU sees it.
pub fn physical(vcpu: &VcpuFd, address: u64) -> Option<u64> {
    let found = vcpu.translate_gva(address).ok()?;
    (found.valid != 0).then_some(found.physical_address)
}

/// Whether the processor can watch this.
pub fn can_watch(slot: Slot) -> bool {
    matches!(slot.bytes, 1 | 2 | 4 | 8) && slot.address.is_multiple_of(slot.bytes)
}

/// What stopped a vCPU.
pub fn trap(exit: &kvm_debug_exit_arch) -> Trap {
    match exit.exception {
        DEBUG => Trap::Debug {
            slots: exit.dr6 & HITS,
            step: exit.dr6 & STEPPED != 0,
        },
        _ => Trap::Breakpoint { address: exit.pc },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_what_the_processor_can_watch() {
        let slot = |address, bytes, watched| Slot {
            address,
            bytes,
            watched,
        };
        assert_eq!(condition(slot(0x1000, 1, Watched::Execution)), 0);
        assert_eq!(condition(slot(0x1000, 4, Watched::Writes)), 0b1101);
        assert_eq!(condition(slot(0x1000, 8, Watched::Accesses)), 0b1011);
        assert!(can_watch(slot(0x1008, 8, Watched::Writes)));
        assert!(!can_watch(slot(0x1004, 8, Watched::Writes)));
        assert!(!can_watch(slot(0x1000, 3, Watched::Writes)));
    }
}
