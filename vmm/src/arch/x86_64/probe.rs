//! What a guest really sees of its processor: a machine of one vCPU and four pages that executes
//! CPUID, RDTSC or a write at a privilege level and nothing else.
//!
//! On hardware virtualization the tables given to KVM decide. A KVM that runs a guest's user code
//! natively shows it some of the host's own bits; only a look from inside tells.

use kvm_bindings::{CpuId, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::debug::{Control, control};
use crate::debug::{Slot, Watched};
use crate::kvm::api::{KvmError, create_uninterrupted};

/// Page tables and code: PML4, PDPT, page directory with one 2 MiB page, code.
const MEMORY_SIZE: usize = 0x4000;
const PML4: u64 = 0;
const PDPT: u64 = 0x1000;
const PAGE_DIRECTORY: u64 = 0x2000;
const CODE: u64 = 0x3000;
/// Code for RDTSC, on the code's page.
const TSC_CODE: u64 = CODE + 0x800;

/// Code for a write to [`DATA`], on the code's page.
const WRITE_CODE: u64 = CODE + 0xc00;
/// A byte to write to, on the code's page.
const DATA: u64 = CODE + 0xf00;

/// A mapped address without memory: a write to it ends the probe.
const DOORBELL: u64 = 0x10_0000;

/// Present, writable, for user mode.
const ENTRY: u64 = 0x7;
/// A page directory entry that maps 2 MiB.
const LARGE: u64 = 0x80;

/// Exits to wait for before the probe counts as failed; signals can come between.
const MAX_EXITS: u32 = 64;

/// Where the probe's code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// CPL 0.
    Kernel,
    /// CPL 3.
    User,
}

impl Level {
    /// The descriptor privilege level.
    fn dpl(self) -> u8 {
        match self {
            Self::Kernel => 0,
            Self::User => 3,
        }
    }
}

/// The guest could not be looked at from inside.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// KVM failed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No memory.
    #[error("Cannot map {MEMORY_SIZE} bytes for a probe of the guest's CPU")]
    Memory,
    /// The code did not end as it should.
    #[error("A probe of the guest's CPU ended with {exit}")]
    Exit {
        /// KVM's last exit.
        exit: String,
    },
}

/// How the code ended.
enum End {
    /// It rang, with these registers.
    Rang(kvm_regs),
    /// It was stopped for a debugger.
    Trapped,
}

/// A machine to look out of.
pub struct Probe {
    // Dropped in this order: KVM must not have the memory any more when it goes.
    vcpu: VcpuFd,
    _vm: kvm_ioctls::VmFd,
    _memory: GuestMemoryMmap<()>,
}

impl Probe {
    /// Makes a machine whose vCPU has this CPUID table.
    pub fn new(kvm: &Kvm, cpuid: &CpuId, level: Level) -> Result<Self, ProbeError> {
        let memory = memory().ok_or(ProbeError::Memory)?;
        let vm = create_uninterrupted(kvm).map_err(KvmError::call("KVM_CREATE_VM"))?;
        for region in memory.iter() {
            let slot = kvm_userspace_memory_region {
                slot: 0,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the range is a mapping that self owns and drops after the VM.
            unsafe { vm.set_user_memory_region(slot) }
                .map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        let vcpu = vm
            .create_vcpu(0)
            .map_err(KvmError::call("KVM_CREATE_VCPU"))?;
        vcpu.set_cpuid2(cpuid)
            .map_err(KvmError::call("KVM_SET_CPUID2"))?;
        enter_long_mode(&vcpu, level)?;
        Ok(Self {
            vcpu,
            _vm: vm,
            _memory: memory,
        })
    }

    /// EAX, EBX, ECX, EDX of a CPUID leaf.
    pub fn cpuid(&mut self, leaf: u32, subleaf: u32) -> Result<[u32; 4], ProbeError> {
        let regs = self.run(kvm_regs {
            rip: CODE,
            rax: leaf.into(),
            rcx: subleaf.into(),
            ..Default::default()
        })?;
        // CPUID clears the upper halves.
        Ok([regs.rax, regs.rbx, regs.rcx, regs.rdx].map(|value| value as u32))
    }

    /// The time stamp counter.
    pub fn tsc(&mut self) -> Result<u64, ProbeError> {
        let regs = self.run(kvm_regs {
            rip: TSC_CODE,
            ..Default::default()
        })?;
        Ok(regs.rdx << 32 | regs.rax & u64::from(u32::MAX))
    }

    /// Whether a write to a byte that the processor watches for a debugger stops the vCPU.
    pub fn watches_data(&mut self) -> Result<bool, ProbeError> {
        let mut wanted = Control::default();
        wanted.slots[0] = Some(Slot {
            address: DATA,
            bytes: 1,
            watched: Watched::Writes,
        });
        control(&self.vcpu, &wanted)?;
        let end = self.end(kvm_regs {
            rip: WRITE_CODE,
            ..Default::default()
        })?;
        control(&self.vcpu, &Control::default())?;
        Ok(matches!(end, End::Trapped))
    }

    /// The vCPU, to change it between looks.
    pub fn vcpu(&self) -> &VcpuFd {
        &self.vcpu
    }

    /// Runs the code until it rings; its registers then.
    fn run(&mut self, regs: kvm_regs) -> Result<kvm_regs, ProbeError> {
        match self.end(regs)? {
            End::Rang(regs) => Ok(regs),
            End::Trapped => Err(ProbeError::Exit {
                exit: "a trap".to_owned(),
            }),
        }
    }

    /// Runs the code to one of its ends.
    fn end(&mut self, mut regs: kvm_regs) -> Result<End, ProbeError> {
        const ALWAYS_SET: u64 = 1 << 1;
        regs.rflags = ALWAYS_SET;
        self.vcpu
            .set_regs(&regs)
            .map_err(KvmError::call("KVM_SET_REGS"))?;
        let mut last = String::new();
        for _ in 0..MAX_EXITS {
            match self.vcpu.run() {
                Ok(VcpuExit::MmioWrite(DOORBELL, _)) => {
                    let regs = self
                        .vcpu
                        .get_regs()
                        .map_err(KvmError::call("KVM_GET_REGS"))?;
                    self.finish_write();
                    return Ok(End::Rang(regs));
                }
                Ok(VcpuExit::Debug(_)) => return Ok(End::Trapped),
                Ok(exit) => {
                    last = format!("{exit:?}");
                    break;
                }
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    last = error.to_string();
                }
                Err(error) => {
                    return Err(KvmError::call("KVM_RUN")(error).into());
                }
            }
        }
        Err(ProbeError::Exit { exit: last })
    }

    /// Lets KVM complete the access that it exited for, without running the guest further.
    fn finish_write(&mut self) {
        self.vcpu.set_kvm_immediate_exit(1);
        let _ = self.vcpu.run();
        self.vcpu.set_kvm_immediate_exit(0);
    }
}

/// Page tables that map the first 2 MiB onto themselves, and the code.
fn memory() -> Option<GuestMemoryMmap<()>> {
    #[rustfmt::skip]
    const CPUID: &[u8] = &[
        0x0f, 0xa2, // cpuid
        0xa2, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, // mov [DOORBELL], al
    ];
    #[rustfmt::skip]
    const RDTSC: &[u8] = &[
        0x0f, 0x31, // rdtsc
        0xa2, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, // mov [DOORBELL], al
    ];
    #[rustfmt::skip]
    const WRITE: &[u8] = &[
        0xa2, 0x00, 0x3f, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // mov [DATA], al
        0xa2, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, // mov [DOORBELL], al
    ];
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).ok()?;
    let entries = [
        (PML4, PDPT | ENTRY),
        (PDPT, PAGE_DIRECTORY | ENTRY),
        (PAGE_DIRECTORY, ENTRY | LARGE),
    ];
    for (address, entry) in entries {
        memory.write_obj(entry, GuestAddress(address)).ok()?;
    }
    for (address, code) in [(CODE, CPUID), (TSC_CODE, RDTSC), (WRITE_CODE, WRITE)] {
        memory.write_slice(code, GuestAddress(address)).ok()?;
    }
    Some(memory)
}

fn enter_long_mode(vcpu: &VcpuFd, level: Level) -> Result<(), KvmError> {
    const PROTECTED_AND_PAGED: u64 = 1 << 31 | 1 << 4 | 1;
    const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
    const LONG_MODE: u64 = 1 << 10 | 1 << 8;
    let mut sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
    let code = segment(level, 0x8, 0xb);
    let data = segment(level, 0x10, 0x3);
    sregs.cs = kvm_segment {
        l: 1,
        db: 0,
        ..code
    };
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.cr0 = PROTECTED_AND_PAGED;
    sregs.cr3 = PML4;
    sregs.cr4 = PHYSICAL_ADDRESS_EXTENSION;
    sregs.efer = LONG_MODE;
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::call("KVM_SET_SREGS"))
}

/// A flat segment; `kind` as in a descriptor (Intel SDM volume 3A, 3.4.5.1).
fn segment(level: Level, selector: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: selector | u16::from(level.dpl()),
        type_: kind,
        present: 1,
        dpl: level.dpl(),
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::KVM_MAX_CPUID_ENTRIES;

    use super::*;

    #[test]
    fn sees_the_processor_from_both_levels() {
        let Some(kvm) = crate::kvm::api::for_test() else {
            return;
        };
        let table = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .expect("table");
        for level in [Level::Kernel, Level::User] {
            let mut probe = Probe::new(&kvm, &table, level).expect("probe");
            let vendor = probe.cpuid(0, 0).expect("leaf 0");
            let entry = table.as_slice().iter().find(|entry| entry.function == 0);
            let entry = entry.expect("leaf 0");
            assert_eq!(vendor[1..], [entry.ebx, entry.ecx, entry.edx], "{level:?}");
            let first = probe.tsc().expect("tsc");
            assert!(probe.tsc().expect("tsc") > first, "{level:?}");
        }
    }

    /// Whatever the answer is on this host, it stays, and the next look is not disturbed.
    #[test]
    fn a_watched_byte_is_written_to() {
        let Some(kvm) = crate::kvm::api::for_test() else {
            return;
        };
        let table = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .expect("table");
        let mut probe = Probe::new(&kvm, &table, Level::Kernel).expect("probe");
        let first = probe.watches_data().expect("an answer");
        assert_eq!(probe.watches_data().expect("an answer"), first);
        probe.tsc().expect("tsc");
    }
}
