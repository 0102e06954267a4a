//! What an ELF core says of an x86 vCPU, and where its kernel has its memory.

use devices::GuestMemory;
use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::state::StateError;
use crate::dump::Mapping;
use crate::kvm::api::KvmError;

/// `EM_X86_64`.
pub const MACHINE: u16 = 62;

/// Bytes of `struct elf_prstatus`, and where in it the thread's ID and `struct user_regs_struct` are.
const STATUS: usize = 336;
const STATUS_PID: usize = 32;
const STATUS_REGISTERS: usize = 112;

const PAGE: u64 = 4096;
const ENTRIES: usize = 512;
/// Bits of an entry: present, and a page instead of a table.
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// CR0.PG, CR4.LA57, EFER.LMA.
const PAGING: u64 = 1 << 31;
const FIVE_LEVELS: u64 = 1 << 12;
const LONG_MODE: u64 = 1 << 10;

/// Most tables looked at, and most mappings found: tables are the guest's, and may lead to each other for ever.
const MAX_TABLES: usize = 1 << 17;
const MAX_MAPPINGS: usize = 32_768;

/// `struct elf_prstatus` of a vCPU as Linux has it; vCPU n is thread n + 1.
pub fn status(vcpu: &VcpuFd, number: u32) -> Result<Vec<u8>, StateError> {
    let regs = vcpu.get_regs().map_err(KvmError::call("KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
    let mut status = vec![0; STATUS];
    status[STATUS_PID..STATUS_PID + 4].copy_from_slice(&(number + 1).to_le_bytes());
    let registers = registers(&regs, &sregs).into_iter();
    let bytes: Vec<u8> = registers.flat_map(u64::to_le_bytes).collect();
    status[STATUS_REGISTERS..STATUS_REGISTERS + bytes.len()].copy_from_slice(&bytes);
    Ok(status)
}

/// `struct user_regs_struct`.
fn registers(r: &kvm_regs, s: &kvm_sregs) -> [u64; 27] {
    let selector = |segment: &kvm_bindings::kvm_segment| u64::from(segment.selector);
    // No system call is under way.
    let original_rax = u64::MAX;
    #[rustfmt::skip]
    let registers = [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi, r.rdi,
        original_rax, r.rip, selector(&s.cs), r.rflags, r.rsp, selector(&s.ss), s.fs.base, s.gs.base,
        selector(&s.ds), selector(&s.es), selector(&s.fs), selector(&s.gs),
    ];
    registers
}

/// What is mapped in the upper half of the address space, the kernel's, in its order. As much as can be told.
pub fn kernel_mappings(vcpu: &VcpuFd, memory: &GuestMemory) -> Result<Vec<Mapping>, StateError> {
    let sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
    let mut walk = Walk::new(memory);
    if sregs.cr0 & PAGING != 0 && sregs.efer & LONG_MODE != 0 {
        let levels = if sregs.cr4 & FIVE_LEVELS != 0 { 5 } else { 4 };
        walk.upper_half(sregs.cr3 & ADDRESS, levels);
    }
    if walk.tables >= MAX_TABLES || walk.found.len() >= MAX_MAPPINGS {
        tracing::warn!(
            "the guest's page tables have no end: the dump has not all virtual addresses"
        );
    }
    Ok(walk.found)
}

/// A walk through page tables (Intel SDM volume 3, 4.5).
struct Walk<'a> {
    memory: &'a GuestMemory,
    tables: usize,
    found: Vec<Mapping>,
}

impl<'a> Walk<'a> {
    fn new(memory: &'a GuestMemory) -> Self {
        Self {
            memory,
            tables: 0,
            found: Vec::new(),
        }
    }

    fn upper_half(&mut self, root: u64, levels: u32) {
        let bits = 12 + 9 * levels;
        // The sign goes on to the left.
        let base = !0 << (bits - 1);
        self.table(root, levels, base, ENTRIES / 2);
    }

    /// Goes through the table at `at` from entry `first` on, which maps `address`.
    fn table(&mut self, at: u64, level: u32, address: u64, first: usize) {
        let mut table = [0; PAGE as usize];
        self.tables += 1;
        if self.tables > MAX_TABLES
            || self
                .memory
                .read_slice(&mut table, GuestAddress(at))
                .is_err()
        {
            return;
        }
        let size = PAGE << (9 * (level - 1));
        for (index, entry) in table.as_chunks().0.iter().enumerate().skip(first) {
            let entry = u64::from_le_bytes(*entry);
            let address = address.wrapping_add((index - first) as u64 * size);
            let is_page = level == 1 || (level <= 3 && entry & LARGE != 0);
            match (entry & PRESENT != 0, is_page) {
                (false, _) => {}
                (true, true) => self.add(address, entry & ADDRESS & !(size - 1), size),
                (true, false) => self.table(entry & ADDRESS, level - 1, address, 0),
            }
        }
    }

    fn add(&mut self, address: u64, physical: u64, bytes: u64) {
        if let Some(last) = self.found.last_mut()
            && last.address.wrapping_add(last.bytes) == address
            && last.physical + last.bytes == physical
        {
            last.bytes += bytes;
        } else if self.found.len() < MAX_MAPPINGS {
            self.found.push(Mapping {
                address,
                physical,
                bytes,
            });
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    const ROOT: u64 = 0x1000;

    fn memory(entries: &[(u64, usize, u64)]) -> GuestMemory {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        for (table, index, entry) in entries {
            let at = GuestAddress(table + *index as u64 * 8);
            memory.write_obj(*entry, at).expect("written");
        }
        memory
    }

    fn walk(memory: &GuestMemory) -> (Vec<Mapping>, usize) {
        let mut walk = Walk::new(memory);
        walk.upper_half(ROOT, 4);
        (walk.found, walk.tables)
    }

    #[test]
    fn neighbours_are_one_mapping() {
        let memory = memory(&[
            // The lower half is not the kernel's.
            (ROOT, 0, 0x2000 | PRESENT),
            (ROOT, 511, 0x2000 | PRESENT),
            (0x2000, 510, 0x3000 | PRESENT),
            (0x3000, 8, 0x20_0000 | LARGE | PRESENT),
            (0x3000, 9, 0x40_0000 | LARGE | PRESENT),
            (0x3000, 11, 0x4000 | PRESENT),
            (0x4000, 511, 0x7000 | PRESENT),
        ]);
        let (found, tables) = walk(&memory);
        let expected = [
            (0xffff_ffff_8100_0000, 0x20_0000, 0x40_0000),
            (0xffff_ffff_817f_f000, 0x7000, 0x1000),
        ];
        let expected = expected.map(|(address, physical, bytes)| Mapping {
            address,
            physical,
            bytes,
        });
        assert_eq!((found.as_slice(), tables), (&expected[..], 4));
    }

    /// Each entry leads back to the root: 512 to the power of three tables.
    #[test]
    fn tables_without_end_are_left() {
        let entries: Vec<_> = (0..ENTRIES)
            .map(|index| (ROOT, index, ROOT | PRESENT))
            .collect();
        let (found, tables) = walk(&memory(&entries));
        assert!(tables > MAX_TABLES);
        assert!(found.len() <= MAX_MAPPINGS);
    }

    #[test]
    fn tables_outside_of_ram_are_empty() {
        let (found, _) = walk(&memory(&[(ROOT, 300, ADDRESS | PRESENT)]));
        assert_eq!(found, []);
    }
}
