//! What a debugger has of a vCPU; there is none yet.

use gdbstub::arch::{Arch, Registers as GdbRegisters};
use kvm_bindings::kvm_debug_exit_arch;
use kvm_ioctls::{Kvm, VcpuFd};

use super::cpu::HostCpu;
use crate::debug::{Slot, Trap};
use crate::kvm::api::KvmError;

/// `brk #0`.
pub const BREAKPOINT: [u8; 4] = [0x00, 0x00, 0x20, 0xd4];

/// Addresses that are watched.
pub const SLOTS: usize = 4;

/// No debugger may come.
pub const IS_OFFERED: bool = false;

/// Bytes of a page, within which addresses are translated alike.
pub const PAGE: u64 = 4096;

/// gdb's idea of the architecture.
pub enum Processor {}

impl Arch for Processor {
    type Usize = u64;
    type Registers = Registers;
    type BreakpointKind = usize;
    type RegId = ();
}

/// None are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registers;

impl GdbRegisters for Registers {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        0
    }

    fn gdb_serialize(&self, _: impl FnMut(Option<u8>)) {}

    fn gdb_deserialize(&mut self, _: &[u8]) -> Result<(), ()> {
        Err(())
    }
}

/// What is asked of a vCPU's debugging hardware.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "as on x86")]
pub struct Control {
    pub slots: [Option<Slot>; SLOTS],
    pub software: bool,
    pub step: bool,
    pub inject: Option<Trap>,
}

/// Why nothing of it works.
const NOT_YET: KvmError = KvmError::Capability {
    name: "what a debugger needs, on 64-bit Arm",
};

/// Refuses.
pub fn control(_: &VcpuFd, _: &Control) -> Result<(), KvmError> {
    Err(NOT_YET)
}

/// Refuses.
pub fn read(_: &VcpuFd) -> Result<Registers, KvmError> {
    Err(NOT_YET)
}

/// Refuses.
pub fn write(_: &VcpuFd, _: &Registers) -> Result<(), KvmError> {
    Err(NOT_YET)
}

/// None does.
pub fn watches_data(_: &Kvm, _: &HostCpu) -> bool {
    false
}

/// Nowhere.
pub fn physical(_: &VcpuFd, _: u64) -> Option<u64> {
    None
}

/// Nothing.
pub fn can_watch(_: Slot) -> bool {
    false
}

/// What stopped a vCPU: nothing asks it to.
pub fn trap(_: &kvm_debug_exit_arch) -> Trap {
    Trap::Debug {
        slots: 0,
        step: false,
    }
}
