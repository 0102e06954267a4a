//! Access to physical memory and MMIO, which are mapped one to one.
//!
//! The functions are safe because they refuse the payload's own image (the only memory
//! that Rust knows of); an address that is not mapped ends in the exception report.

use crate::boot;

/// Panics if the range touches the payload's image.
#[track_caller]
pub fn check(addr: u64, len: u64) {
    let image = boot::image();
    if addr < image.end && addr.saturating_add(len) > image.start {
        panic!("access to own image at {addr:#x}");
    }
}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty) => {
        #[doc = "One volatile load."]
        #[track_caller]
        pub fn $read(addr: u64) -> $type {
            check(addr, size_of::<$type>() as u64);
            // SAFETY: not Rust memory (checked); a bad address faults into the report.
            unsafe { (addr as *const $type).read_volatile() }
        }

        #[doc = "One volatile store."]
        #[track_caller]
        pub fn $write(addr: u64, value: $type) {
            check(addr, size_of::<$type>() as u64);
            // SAFETY: not Rust memory (checked); a bad address faults into the report.
            unsafe { (addr as *mut $type).write_volatile(value) }
        }
    };
}
access!(r8, w8, u8);
access!(r32, w32, u32);

/// Aligned accesses only, except where the machine is probed: x86 does not mind, Rust does.
macro_rules! unaligned {
    ($read:ident, $write:ident, $type:ty, $size:literal, $reg:literal) => {
        #[doc = "One load instruction, aligned or not."]
        #[track_caller]
        pub fn $read(addr: u64) -> $type {
            check(addr, size_of::<$type>() as u64);
            let value: $type;
            // SAFETY: as above.
            unsafe {
                core::arch::asm!(concat!("mov {v", $reg, "}, ", $size, " ptr [{a}]"),
                    v = out(reg) value, a = in(reg) addr, options(nostack, preserves_flags));
            }
            value
        }

        #[doc = "One store instruction, aligned or not."]
        #[track_caller]
        pub fn $write(addr: u64, value: $type) {
            check(addr, size_of::<$type>() as u64);
            // SAFETY: as above.
            unsafe {
                core::arch::asm!(concat!("mov ", $size, " ptr [{a}], {v", $reg, "}"),
                    v = in(reg) value, a = in(reg) addr, options(nostack, preserves_flags));
            }
        }
    };
}
unaligned!(r16, w16, u16, "word", ":x");
unaligned!(r32u, w32u, u32, "dword", ":e");
unaligned!(r64, w64, u64, "qword", "");

/// Copies bytes in.
#[track_caller]
pub fn copy_in(addr: u64, bytes: &[u8]) {
    check(addr, bytes.len() as u64);
    // SAFETY: disjoint from Rust memory (checked).
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), addr as *mut u8, bytes.len()) }
}

/// Copies bytes out.
#[track_caller]
pub fn copy_out(addr: u64, bytes: &mut [u8]) {
    check(addr, bytes.len() as u64);
    // SAFETY: disjoint from Rust memory (checked).
    unsafe { core::ptr::copy_nonoverlapping(addr as *const u8, bytes.as_mut_ptr(), bytes.len()) }
}

/// Sets bytes.
#[track_caller]
pub fn fill(addr: u64, byte: u8, len: u64) {
    check(addr, len);
    // SAFETY: disjoint from Rust memory (checked).
    unsafe { core::ptr::write_bytes(addr as *mut u8, byte, len as usize) }
}

/// A store with a width known at run time: 1, 2, 4 or 8.
#[track_caller]
pub fn store(addr: u64, width: u8, value: u64) {
    match width {
        1 => w8(addr, value as u8),
        2 => w16(addr, value as u16),
        8 => w64(addr, value),
        _ => w32u(addr, value as u32),
    }
}

/// A load with a width known at run time.
#[track_caller]
pub fn load(addr: u64, width: u8) -> u64 {
    match width {
        1 => r8(addr).into(),
        2 => r16(addr).into(),
        8 => r64(addr),
        _ => r32u(addr).into(),
    }
}
