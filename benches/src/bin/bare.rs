//! The least that a start can cost: the KVM calls for a machine with memory, interrupt controller,
//! timer and one vCPU, whose first instructions send `!` to the serial port. No kernel image, no
//! devices, no second process, no jail.
//!
//! The first argument is the guest's RAM in MiB. With a second one, whatever it is, the guest then
//! stands still for ever, else the program ends.

use std::error::Error;
use std::io::Write;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

const ENTRY: u64 = 0x1000;
/// `mov dx, 0x3f8; mov al, '!'; out dx, al; hlt` in 32-bit mode.
const CODE: [u8; 9] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xf4, 0x90];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mib: usize = arguments.next().ok_or("RAM in MiB is missing")?.parse()?;
    let stays = arguments.next().is_some();
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    add_memory(&vm, mib << 20)?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    })?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    set_entry(&vcpu)?;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(0x3f8, data) => {
                let mut out = std::io::stdout();
                out.write_all(data)?;
                out.flush()?;
                if !stays {
                    return Ok(());
                }
            }
            VcpuExit::Intr => {}
            other => return Err(format!("unexpected exit: {other:?}").into()),
        }
    }
}

/// One slot from address 0, with the code in it.
fn add_memory(vm: &VmFd, len: usize) -> Result<(), Box<dyn Error>> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at a place that the kernel chooses; it is never unmapped.
    let memory = unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, flags) }?;
    // SAFETY: the mapping is longer than ENTRY plus the code (a MiB at least), and ours alone.
    unsafe {
        let entry = memory.cast::<u8>().add(ENTRY as usize);
        entry.copy_from_nonoverlapping(CODE.as_ptr(), CODE.len());
    }
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: len as u64,
        userspace_addr: memory as u64,
    };
    // SAFETY: the mapping lives as long as the process, and Rust does not look at it again.
    unsafe { vm.set_user_memory_region(region) }?;
    Ok(())
}

/// Flat 32-bit protected mode at the code, as PVH has it.
fn set_entry(vcpu: &VcpuFd) -> Result<(), Box<dyn Error>> {
    let segment = |type_, selector| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = segment(0xb, 0x08);
    let data = segment(0x3, 0x10);
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.cr0 = 0x11;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (ENTRY, 2);
    vcpu.set_regs(&regs)?;
    Ok(())
}
