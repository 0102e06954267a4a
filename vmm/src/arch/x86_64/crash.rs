//! What is known of a vCPU that cannot go on.

use std::collections::BTreeMap;
use std::fmt::Write;

use devices::GuestMemory;
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use crate::crash::CrashReport;

/// Longest x86 instruction.
const INSTRUCTION_MAX: u64 = 15;

const EMULATION_FAILURE: u32 = 1;
/// `KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES`.
const HAS_INSTRUCTION_BYTES: u64 = 1;

/// One sentence for `KVM_EXIT_INTERNAL_ERROR`.
pub fn internal_error_reason(suberror: u32, data: &[u64]) -> String {
    let kind = match suberror {
        EMULATION_FAILURE => "instruction that KVM cannot emulate",
        2 => "simultaneous exceptions",
        3 => "exception while delivering an event",
        4 => "unexpected exit reason",
        _ => "unknown suberror",
    };
    let mut reason = format!("KVM internal error {suberror}: {kind}");
    match (suberror, data) {
        (EMULATION_FAILURE, [flags, rest @ ..]) if flags & HAS_INSTRUCTION_BYTES != 0 => {
            let bytes: Vec<u8> = rest.iter().flat_map(|word| word.to_le_bytes()).collect();
            if let [len, bytes @ ..] = bytes.as_slice() {
                for byte in bytes
                    .iter()
                    .take(usize::from(*len).min(INSTRUCTION_MAX as usize))
                {
                    // Writing to a String cannot fail.
                    let _ = write!(reason, " {byte:02x}");
                }
            }
        }
        _ => {
            for word in data {
                let _ = write!(reason, " {word:#x}");
            }
        }
    }
    reason
}

/// The vCPU's registers and the instruction it was at, in a report without a reason. What cannot be
/// read is left out.
pub fn registers(vcpu: &VcpuFd, memory: &GuestMemory) -> CrashReport {
    let mut registers = BTreeMap::new();
    let mut add = |name: &str, value: u64| {
        registers.insert(name.to_owned(), value);
    };
    let mut rip = 0;
    let mut fetch = 0;
    if let Ok(regs) = vcpu.get_regs() {
        rip = regs.rip;
        fetch = regs.rip;
        #[rustfmt::skip]
        let named = [
            ("rax", regs.rax), ("rbx", regs.rbx), ("rcx", regs.rcx), ("rdx", regs.rdx),
            ("rsi", regs.rsi), ("rdi", regs.rdi), ("rsp", regs.rsp), ("rbp", regs.rbp),
            ("r8", regs.r8), ("r9", regs.r9), ("r10", regs.r10), ("r11", regs.r11),
            ("r12", regs.r12), ("r13", regs.r13), ("r14", regs.r14), ("r15", regs.r15),
            ("rip", regs.rip), ("rflags", regs.rflags),
        ];
        named.iter().for_each(|(name, value)| add(name, *value));
    }
    if let Ok(sregs) = vcpu.get_sregs() {
        if sregs.cs.l == 0 {
            fetch = fetch.wrapping_add(sregs.cs.base);
        }
        #[rustfmt::skip]
        let named = [
            ("cr0", sregs.cr0), ("cr2", sregs.cr2), ("cr3", sregs.cr3), ("cr4", sregs.cr4),
            ("efer", sregs.efer), ("cs", u64::from(sregs.cs.selector)),
            ("ss", u64::from(sregs.ss.selector)), ("fs.base", sregs.fs.base),
            ("gs.base", sregs.gs.base), ("gdt.base", sregs.gdt.base), ("idt.base", sregs.idt.base),
        ];
        named.iter().for_each(|(name, value)| add(name, *value));
    }
    CrashReport {
        instruction_pointer: rip,
        instruction: instruction_bytes(vcpu, memory, fetch),
        registers,
        ..CrashReport::default()
    }
}

fn instruction_bytes(vcpu: &VcpuFd, memory: &GuestMemory, address: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for offset in 0..INSTRUCTION_MAX {
        let byte = vcpu
            .translate_gva(address.wrapping_add(offset))
            .ok()
            .filter(|translation| translation.valid != 0)
            .and_then(|translation| {
                memory
                    .read_obj(GuestAddress(translation.physical_address))
                    .ok()
            });
        match byte {
            Some(byte) => bytes.push(byte),
            None => break,
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulation_failures_show_the_instruction() {
        let mut words = [0_u8; 16];
        words[0] = 3;
        words[1..4].copy_from_slice(&[0x0f, 0xae, 0x29]);
        let data: Vec<u64> = std::iter::once(HAS_INSTRUCTION_BYTES)
            .chain(
                words
                    .chunks_exact(8)
                    .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))),
            )
            .collect();
        let reason = internal_error_reason(EMULATION_FAILURE, &data);
        assert!(reason.ends_with("cannot emulate 0f ae 29"), "{reason}");
        assert!(internal_error_reason(3, &[0x80]).ends_with("delivering an event 0x80"));
        assert!(internal_error_reason(1, &[]).ends_with("cannot emulate"));
    }
}
