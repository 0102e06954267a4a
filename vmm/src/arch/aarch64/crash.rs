//! What is known of a vCPU that cannot go on.

use std::collections::BTreeMap;
use std::fmt::Write;

use devices::GuestMemory;
use kvm_ioctls::VcpuFd;

use super::cpu::core_register;
use crate::crash::CrashReport;

/// One sentence for `KVM_EXIT_INTERNAL_ERROR`.
pub fn internal_error_reason(suberror: u32, data: &[u64]) -> String {
    let mut reason = format!("KVM internal error {suberror}");
    for word in data {
        // Writing to a String cannot fail.
        let _ = write!(reason, " {word:#x}");
    }
    reason
}

/// The vCPU's registers in a report without a reason. What cannot be read is left out.
pub fn registers(vcpu: &VcpuFd, _memory: &GuestMemory) -> CrashReport {
    const SP: u64 = 31;
    const PC: u64 = 32;
    const PSTATE: u64 = 33;
    let read = |place| {
        let mut bytes = [0; 8];
        let read = vcpu.get_one_reg(core_register(place), &mut bytes);
        read.ok().map(|_| u64::from_le_bytes(bytes))
    };
    let names = (0..SP).map(|place| (format!("x{place}"), place));
    let others = [("sp", SP), ("pc", PC), ("pstate", PSTATE)];
    let others = others.map(|(name, place)| (name.to_owned(), place));
    let registers: BTreeMap<_, _> = names
        .chain(others)
        .filter_map(|(name, place)| Some((name, read(place)?)))
        .collect();
    CrashReport {
        instruction_pointer: registers.get("pc").copied().unwrap_or(0),
        registers,
        ..CrashReport::default()
    }
}
