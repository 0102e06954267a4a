//! The report of an exception that nobody expects.

use crate::{power, println, serial};

/// The registers as `fatal` in `boot.s` pushes them.
#[repr(C)]
struct Frame {
    cr2: u64,
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rbp: u64,
    rsi: u64,
    rdi: u64,
    r8_to_r15: [u64; 8],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Prints the exception and powers off; `boot.s` comes here at CPL 3.
#[unsafe(no_mangle)]
extern "C" fn trap_main(frame: &Frame) -> ! {
    serial::seize();
    println!(
        "\nPAYLOAD-EXCEPTION vector={} error={:#x} rip={:#x} cr2={:#x} cs={:#x} rflags={:#x} rsp={:#x} ss={:#x}",
        frame.vector,
        frame.error,
        frame.rip,
        frame.cr2,
        frame.cs,
        frame.rflags,
        frame.rsp,
        frame.ss
    );
    println!(
        "rax={:#x} rbx={:#x} rcx={:#x} rdx={:#x} rbp={:#x} rsi={:#x} rdi={:#x} r8..r15={:x?}",
        frame.rax,
        frame.rbx,
        frame.rcx,
        frame.rdx,
        frame.rbp,
        frame.rsi,
        frame.rdi,
        frame.r8_to_r15
    );
    power::off()
}
