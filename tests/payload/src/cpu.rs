//! Instructions: ports, time stamps, and the services of `boot.s` that need CPL 0.

use core::arch::asm;

/// RAX of a `ud2` that is a call, not a fault (`MAGIC` in `boot.s`).
const MAGIC: u64 = 0x6c_6c61_636b;

/// The services of `kcall` in `boot.s`.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Service {
    Cpuid,
    ReadMsr,
    WriteMsr,
    Out,
    In,
    Store,
    Load,
    Halt,
    TripleFault,
    Int3,
    Nop,
}

#[derive(Default)]
struct Reply {
    rax: u64,
    rcx: u64,
    rdx: u64,
    r9: u64,
    r10: u64,
}

fn kcall(service: Service, rcx: u64, rdx: u64, r9: u64) -> Reply {
    let mut reply = Reply::default();
    // SAFETY: the handler in boot.s changes these registers only, and memory just as asked.
    unsafe {
        asm!("ud2", inout("rax") MAGIC => reply.rax, inout("rcx") rcx => reply.rcx,
            inout("rdx") rdx => reply.rdx, in("r8") service as u64,
            inout("r9") r9 => reply.r9, out("r10") reply.r10);
    }
    reply
}

/// EAX, EBX, ECX, EDX as CPL 0 sees them (CPL 3 may see the host's on some machines).
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = kcall(Service::Cpuid, subleaf.into(), 0, leaf.into());
    [r.rax as u32, r.r10 as u32, r.rcx as u32, r.rdx as u32]
}

/// Reads an MSR; `None` where that faults.
pub fn read_msr(msr: u32) -> Option<u64> {
    let r = kcall(Service::ReadMsr, msr.into(), 0, 0);
    (r.r9 == 0).then_some(r.rax & 0xffff_ffff | r.rdx << 32)
}

/// Writes an MSR; false where that faults.
pub fn write_msr(msr: u32, value: u64) -> bool {
    kcall(
        Service::WriteMsr,
        msr.into(),
        value >> 32,
        value & 0xffff_ffff,
    )
    .r9 == 0
}

/// A port write by CPL 0. `width` is 1, 2 or 4.
pub fn kernel_out(port: u16, width: u8, value: u32) {
    kcall(Service::Out, width.into(), port.into(), value.into());
}

/// A port read by CPL 0.
pub fn kernel_in(port: u16, width: u8) -> u32 {
    kcall(Service::In, width.into(), port.into(), 0).rax as u32
}

/// A store by CPL 0 to an address outside the payload. `width` is 1, 2, 4 or 8.
pub fn kernel_store(addr: u64, width: u8, value: u64) {
    crate::phys::check(addr, width.into());
    kcall(Service::Store, width.into(), addr, value);
}

/// A load by CPL 0.
pub fn kernel_load(addr: u64, width: u8) -> u64 {
    kcall(Service::Load, width.into(), addr, 0).rax
}

/// Nothing, by CPL 0: the cost of the call itself.
pub fn kernel_nop() {
    kcall(Service::Nop, 0, 0, 0);
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    kcall(Service::Halt, 0, 0, 0);
    unreachable!("HLT loop returned")
}

/// Faults with no usable IDT.
pub fn triple_fault() -> ! {
    kcall(Service::TripleFault, 0, 0, 0);
    unreachable!("survived a triple fault")
}

/// `int3` at CPL 0: a KVM emulation failure where CPL 0 is interpreted, #BP elsewhere.
pub fn int3() {
    kcall(Service::Int3, 0, 0, 0);
}

/// Spin-loop hint.
pub fn pause() {
    core::hint::spin_loop();
}

/// The time-stamp counter, after everything before it.
pub fn tsc() -> u64 {
    // SAFETY: no effect but the result.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

macro_rules! port {
    ($out:ident, $in:ident, $type:ty, $reg:tt) => {
        #[doc = "Writes a port. What the device then does to memory is the caller's concern."]
        pub fn $out(port: u16, value: $type) {
            // SAFETY: the payload owns the machine; ports are not Rust memory.
            unsafe {
                asm!(concat!("out dx, ", $reg), in("dx") port, in($reg) value,
                    options(nostack, preserves_flags));
            }
        }

        #[doc = "Reads a port."]
        pub fn $in(port: u16) -> $type {
            let value: $type;
            // SAFETY: as above.
            unsafe {
                asm!(concat!("in ", $reg, ", dx"), in("dx") port, out($reg) value,
                    options(nostack, preserves_flags));
            }
            value
        }
    };
}
port!(outb, inb, u8, "al");
port!(outw, inw, u16, "ax");
port!(outl, inl, u32, "eax");

/// Writes bytes to a port with one string instruction.
pub fn out_string(port: u16, bytes: &[u8]) {
    // SAFETY: reads `bytes`; as for other ports.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _, options(nostack, preserves_flags, readonly));
    }
}

/// Writes a port with a width known at run time.
pub fn out(port: u16, width: u8, value: u32) {
    match width {
        1 => outb(port, value as u8),
        2 => outw(port, value as u16),
        _ => outl(port, value),
    }
}

/// Reads a port with a width known at run time.
pub fn input(port: u16, width: u8) -> u32 {
    match width {
        1 => inb(port).into(),
        2 => inw(port).into(),
        _ => inl(port),
    }
}
