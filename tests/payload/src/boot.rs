//! What `boot.s` exports, and the memory routines that the compiler expects.

use core::arch::{asm, global_asm};

global_asm!(include_str!("boot.s"), options(att_syntax));

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
    static boot_pml4: u8;
    static mut boot_ap_index: u32;
    static boot_nmi_count: u32;
    static __image_start: u8;
    static __image_end: u8;
}

/// Where `boot.s` expects its real-mode trampoline.
pub const TRAMPOLINE: u64 = 0x8000;

/// The real-mode code that takes an application processor to `ap_main`.
pub fn trampoline_code() -> &'static [u8] {
    let start = &raw const trampoline;
    let len = (&raw const trampoline_end) as usize - start as usize;
    // SAFETY: both symbols delimit constant bytes of `.boot`.
    unsafe { core::slice::from_raw_parts(start, len) }
}

/// Sets the CPU index that the next application processor to start takes.
pub fn set_ap_index(index: u32) {
    // SAFETY: read only by the processor that is started next, after this write.
    unsafe { (&raw mut boot_ap_index).write_volatile(index) }
}

/// Non-maskable interrupts so far, on all CPUs.
pub fn nmi_count() -> u32 {
    // SAFETY: a word that the NMI handler increments.
    unsafe { (&raw const boot_nmi_count).read_volatile() }
}

/// Address of the top page table.
pub fn pml4() -> u64 {
    (&raw const boot_pml4) as u64
}

/// The payload's own memory: code, tables, stacks.
pub fn image() -> core::ops::Range<u64> {
    (&raw const __image_start) as u64..(&raw const __image_end) as u64
}

// `core` is compiled for a target with a C library, and so expects these of us.

/// C `memcpy`.
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _,
            options(nostack, preserves_flags));
    }
    to
}

/// C `memmove`.
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: a forward copy never overwrites bytes that are still to be read.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: the caller vouches for both ranges; backwards because `to` is inside `from`.
    unsafe {
        asm!("std", "rep movsb", "cld",
            inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _,
            inout("rcx") len => _, options(nostack));
    }
    to
}

/// C `memset`.
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") byte as u8, inout("rcx") len => _,
            options(nostack, preserves_flags));
    }
    to
}

/// C `memcmp`.
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for i in 0..len {
        // SAFETY: the caller vouches for both ranges.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// C `bcmp`.
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: same contract.
    unsafe { memcmp(a, b, len) }
}

/// C `strlen`.
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(s: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: the caller vouches for a terminated string.
    while unsafe { s.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}

/// Referred to by `core`, never called: panics abort.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Referred to by `core`, never called: panics abort.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    crate::power::off()
}
