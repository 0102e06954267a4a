//! Register state of the boot vCPU at its first instruction.

use devices::GuestMemory;
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::kvm::api::KvmError;

/// How the boot vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryPoint {
    /// 32-bit protected mode with the start info in EBX (Xen `docs/misc/pvh.pandoc`).
    Pvh {
        /// Instruction pointer.
        ip: u64,
    },
    /// 64-bit mode with the zero page in RSI (Linux boot protocol, 64-bit).
    Linux64 {
        /// Instruction pointer.
        ip: u64,
    },
}

/// The boot state cannot be set.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Page tables or descriptor table could not be written.
    #[error("Cannot write boot page tables and descriptors")]
    Write(#[from] vm_memory::GuestMemoryError),
    /// KVM took fewer MSRs than given.
    #[error("KVM refused MSR {index:#x}")]
    Msr {
        /// The first one refused.
        index: u32,
    },
}

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// Selectors into the boot descriptor table; Linux's 64-bit protocol fixes 0x10 and 0x18.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

/// MSRs that firmware would have set, on every vCPU: fast strings, and all memory write-back.
pub fn set_msrs(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&entries).map_err(|_| RegisterError::Msr { index: 0 })?;
    let set = vcpu
        .set_msrs(&msrs)
        .map_err(KvmError::call("KVM_SET_MSRS"))?;
    match entries.get(set) {
        None => Ok(()),
        Some(entry) => Err(RegisterError::Msr { index: entry.index }),
    }
}

/// Local interrupt lines as firmware leaves them: LINT0 for an 8259, LINT1 for NMIs (Intel
/// MultiProcessor Specification 1.4, appendix A).
pub fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const DELIVER_NMI: u8 = 0b100;
    const DELIVER_EXTERNAL: u8 = 0b111;
    const MASKED: u8 = 1;
    let mut lapic = vcpu.get_lapic().map_err(KvmError::call("KVM_GET_LAPIC"))?;
    for (register, delivery) in [(LVT_LINT0, DELIVER_EXTERNAL), (LVT_LINT1, DELIVER_NMI)] {
        // Delivery mode is bits 8 to 10, the mask is bit 16. The field's elements are C chars.
        lapic.regs[register + 1] = delivery as _;
        lapic.regs[register + 2] &= !MASKED as std::ffi::c_char;
    }
    vcpu.set_lapic(&lapic)
        .map_err(KvmError::call("KVM_SET_LAPIC"))?;
    Ok(())
}

/// Puts the boot vCPU at the entry point in the state that its protocol wants.
pub fn set_entry(
    vcpu: &VcpuFd,
    memory: &GuestMemory,
    entry: EntryPoint,
) -> Result<(), RegisterError> {
    let mut sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
    let long_mode = matches!(entry, EntryPoint::Linux64 { .. });
    let code = segment(CODE_SELECTOR, SegmentType::Code { long_mode });
    let data = segment(DATA_SELECTOR, SegmentType::Data);
    let tss = segment(TSS_SELECTOR, SegmentType::BusyTss);
    let table = [0, 0, descriptor(&code), descriptor(&data), descriptor(&tss)];
    for (index, entry) in (0..).zip(table) {
        memory.write_obj(entry, GuestAddress(layout::BOOT_GDT + index * 8))?;
    }
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = (size_of_val(&table) - 1) as u16;
    sregs.idt.limit = 0;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = tss;
    sregs.cr0 = CR0_PE | CR0_ET;
    if long_mode {
        write_page_tables(memory)?;
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = layout::BOOT_PML4;
        sregs.cr4 |= CR4_PAE;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::call("KVM_SET_SREGS"))?;
    let regs = match entry {
        EntryPoint::Pvh { ip } => kvm_regs {
            rip: ip,
            rbx: layout::PVH_START_INFO,
            rflags: RFLAGS_RESERVED,
            ..Default::default()
        },
        EntryPoint::Linux64 { ip } => kvm_regs {
            rip: ip,
            rsi: layout::ZERO_PAGE,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            rflags: RFLAGS_RESERVED,
            ..Default::default()
        },
    };
    vcpu.set_regs(&regs)
        .map_err(KvmError::call("KVM_SET_REGS"))?;
    Ok(())
}

/// Identity-maps the first 4 GiB with 2 MiB pages.
fn write_page_tables(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const HUGE: u64 = 1 << 7;
    const TABLE: u64 = 4096;
    memory.write_obj(
        layout::BOOT_PDPT | PRESENT_WRITABLE,
        GuestAddress(layout::BOOT_PML4),
    )?;
    for gib in 0..4 {
        let directory = layout::BOOT_PD + gib * TABLE;
        memory.write_obj(
            directory | PRESENT_WRITABLE,
            GuestAddress(layout::BOOT_PDPT + gib * 8),
        )?;
        for index in 0..512 {
            let page = (gib << 30) | (index << 21);
            memory.write_obj(
                page | PRESENT_WRITABLE | HUGE,
                GuestAddress(directory + index * 8),
            )?;
        }
    }
    Ok(())
}

enum SegmentType {
    Code { long_mode: bool },
    Data,
    BusyTss,
}

/// A flat 4 GiB segment (a TSS of 104 bytes), ring 0.
fn segment(selector: u16, kind: SegmentType) -> kvm_segment {
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        selector,
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        ..Default::default()
    };
    match kind {
        SegmentType::Code { long_mode } => kvm_segment {
            type_: 0xb,
            l: u8::from(long_mode),
            db: u8::from(!long_mode),
            ..flat
        },
        SegmentType::Data => kvm_segment { type_: 0x3, ..flat },
        SegmentType::BusyTss => kvm_segment {
            limit: 0x67,
            type_: 0xb,
            s: 0,
            g: 0,
            db: 0,
            ..flat
        },
    }
}

/// The descriptor-table form of a segment (Intel SDM volume 3A, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.avl)
        | u64::from(segment.l) << 1
        | u64::from(segment.db) << 2
        | u64::from(segment.g) << 3;
    let base = segment.base;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        let long = segment(CODE_SELECTOR, SegmentType::Code { long_mode: true });
        let protected = segment(CODE_SELECTOR, SegmentType::Code { long_mode: false });
        assert_eq!(descriptor(&long), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&protected), 0x00cf_9b00_0000_ffff);
        assert_eq!(
            descriptor(&segment(DATA_SELECTOR, SegmentType::Data)),
            0x00cf_9300_0000_ffff
        );
        assert_eq!(
            descriptor(&segment(TSS_SELECTOR, SegmentType::BusyTss)),
            0x0000_8b00_0000_0067
        );
    }
}
