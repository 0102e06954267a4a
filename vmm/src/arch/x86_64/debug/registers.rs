//! The registers, in gdb's order and in KVM's.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::kvm::api::KvmError;

/// Bytes of a floating point register, of which KVM has 16.
const FLOAT: usize = 10;

/// All that gdb knows of a vCPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registers {
    general: kvm_regs,
    special: kvm_sregs,
    fpu: kvm_fpu,
}

/// Reads them.
pub fn read(vcpu: &VcpuFd) -> Result<Registers, KvmError> {
    Ok(Registers {
        general: vcpu.get_regs().map_err(KvmError::call("KVM_GET_REGS"))?,
        special: vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?,
        fpu: vcpu.get_fpu().map_err(KvmError::call("KVM_GET_FPU"))?,
    })
}

/// Writes what is different from what the vCPU has, but for segment selectors, which alone say nothing.
pub fn write(vcpu: &VcpuFd, wanted: &Registers) -> Result<(), KvmError> {
    let now = read(vcpu)?;
    if wanted.general != now.general {
        vcpu.set_regs(&wanted.general)
            .map_err(KvmError::call("KVM_SET_REGS"))?;
    }
    let special = merged(now.special, &wanted.special);
    if special != now.special {
        vcpu.set_sregs(&special)
            .map_err(KvmError::call("KVM_SET_SREGS"))?;
    }
    let fpu = merged_fpu(now.fpu, &wanted.fpu);
    if fpu != now.fpu {
        vcpu.set_fpu(&fpu).map_err(KvmError::call("KVM_SET_FPU"))?;
    }
    Ok(())
}

/// What gdb has no register for stays.
fn merged(now: kvm_sregs, wanted: &kvm_sregs) -> kvm_sregs {
    let mut merged = now;
    merged.fs.base = wanted.fs.base;
    merged.gs.base = wanted.gs.base;
    merged.cr0 = wanted.cr0;
    merged.cr2 = wanted.cr2;
    merged.cr3 = wanted.cr3;
    merged.cr4 = wanted.cr4;
    merged.efer = wanted.efer;
    merged
}

fn merged_fpu(now: kvm_fpu, wanted: &kvm_fpu) -> kvm_fpu {
    let mut merged = *wanted;
    for (register, now) in merged.fpr.iter_mut().zip(now.fpr) {
        register[FLOAT..].copy_from_slice(&now[FLOAT..]);
    }
    // gdb has the lower halves.
    merged.last_ip |= now.last_ip & !0xffff_ffff;
    merged.last_dp |= now.last_dp & !0xffff_ffff;
    (merged.pad1, merged.pad2) = (now.pad1, now.pad2);
    merged
}

impl gdbstub::arch::Registers for Registers {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.general.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.bytes()
            .into_iter()
            .for_each(|byte| write_byte(Some(byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        *self = Self::parse(bytes).ok_or(())?;
        Ok(())
    }
}

impl Registers {
    /// In the order of the description.
    fn bytes(&self) -> Vec<u8> {
        let (r, s, f) = (&self.general, &self.special, &self.fpu);
        let mut bytes = Vec::new();
        #[rustfmt::skip]
        let general = [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
            r.r15, r.rip,
        ];
        general
            .iter()
            .for_each(|word| bytes.extend(word.to_le_bytes()));
        let selector = |segment: &kvm_segment| u32::from(segment.selector);
        let segments = [&s.cs, &s.ss, &s.ds, &s.es, &s.fs, &s.gs].map(selector);
        bytes.extend((r.rflags as u32).to_le_bytes());
        segments
            .iter()
            .for_each(|word| bytes.extend(word.to_le_bytes()));
        f.fpr
            .iter()
            .for_each(|register| bytes.extend(&register[..FLOAT]));
        #[rustfmt::skip]
        let control = [
            u32::from(f.fcw), u32::from(f.fsw), u32::from(whole_tags(f.ftwx)), 0, f.last_ip as u32, 0,
            f.last_dp as u32, u32::from(f.last_opcode),
        ];
        control
            .iter()
            .for_each(|word| bytes.extend(word.to_le_bytes()));
        f.xmm.iter().for_each(|register| bytes.extend(register));
        bytes.extend(f.mxcsr.to_le_bytes());
        let special = [s.fs.base, s.gs.base, s.cr0, s.cr2, s.cr3, s.cr4, s.efer];
        special
            .iter()
            .for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut all = Self::default();
        let (r, s, f) = (&mut all.general, &mut all.special, &mut all.fpu);
        let mut bytes = Reader(bytes);
        #[rustfmt::skip]
        let general = [
            &mut r.rax, &mut r.rbx, &mut r.rcx, &mut r.rdx, &mut r.rsi, &mut r.rdi, &mut r.rbp, &mut r.rsp, &mut r.r8,
            &mut r.r9, &mut r.r10, &mut r.r11, &mut r.r12, &mut r.r13, &mut r.r14, &mut r.r15, &mut r.rip,
        ];
        for register in general {
            *register = bytes.long()?;
        }
        r.rflags = u64::from(bytes.word()?);
        for segment in [
            &mut s.cs, &mut s.ss, &mut s.ds, &mut s.es, &mut s.fs, &mut s.gs,
        ] {
            segment.selector = bytes.word()? as u16;
        }
        for register in &mut f.fpr {
            register[..FLOAT].copy_from_slice(&bytes.take::<FLOAT>()?);
        }
        f.fcw = bytes.word()? as u16;
        f.fsw = bytes.word()? as u16;
        f.ftwx = short_tags(bytes.word()? as u16);
        bytes.word()?;
        f.last_ip = u64::from(bytes.word()?);
        bytes.word()?;
        f.last_dp = u64::from(bytes.word()?);
        f.last_opcode = bytes.word()? as u16;
        for register in &mut f.xmm {
            *register = bytes.take()?;
        }
        f.mxcsr = bytes.word()?;
        let bases = [&mut s.fs.base, &mut s.gs.base];
        let control = [&mut s.cr0, &mut s.cr2, &mut s.cr3, &mut s.cr4, &mut s.efer];
        for register in bases.into_iter().chain(control) {
            *register = bytes.long()?;
        }
        Some(all)
    }
}

/// Two bits for each floating point register instead of one: 0 is a number, 3 is nothing.
fn whole_tags(short: u8) -> u16 {
    let tags = (0..8).filter(|register| short >> register & 1 == 0);
    tags.fold(0, |tags, register| tags | 3 << (2 * register))
}

fn short_tags(whole: u16) -> u8 {
    let tags = (0..8).filter(|register| whole >> (2 * register) & 3 != 3);
    tags.fold(0, |tags, register| tags | 1 << register)
}

/// What is left of gdb's bytes.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn word(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gdb_gets_what_its_description_says_and_gives_it_back() {
        let mut registers = Registers::default();
        registers.general.rip = 0xffff_ffff_8100_0000;
        registers.general.rflags = 0x246;
        registers.special.cs.selector = 0x10;
        registers.special.gs.base = 0xffff_8880_0000_0000;
        registers.special.cr3 = 0x1000;
        registers.fpu.ftwx = 0x81;
        registers.fpu.xmm[15] = [7; 16];
        let bytes = registers.bytes();
        assert_eq!(bytes.len(), super::super::description::bytes());
        assert_eq!(bytes[16 * 8..17 * 8], registers.general.rip.to_le_bytes());
        assert_eq!(Registers::parse(&bytes), Some(registers));
        assert_eq!(Registers::parse(&bytes[1..]), None);
    }

    #[test]
    fn what_gdb_does_not_know_stays() {
        let mut now = kvm_sregs::default();
        now.cs.limit = 7;
        now.fs.limit = 9;
        let mut wanted = kvm_sregs::default();
        wanted.fs.base = 0x5000;
        wanted.cr0 = 1;
        let merged = merged(now, &wanted);
        assert_eq!((merged.cs.limit, merged.fs.limit), (7, 9));
        assert_eq!((merged.fs.base, merged.cr0), (0x5000, 1));
        assert_eq!(whole_tags(0x81), 0x3ffc);
        assert_eq!(short_tags(0x3ffc), 0x81);
    }
}
