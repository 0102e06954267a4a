//! Guests that crash, and what the report says of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podvisor_tests::PATIENCE;
use podvisor_tests::proc::Process;
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::Vmi;
use podvisor_tests::{elf, guest};

/// What the vm process may have mapped of its own file while its guest stands still, KiB. At its start it is above 2 MiB.
const IDLE: u64 = 1536;

/// Three instructions whose last cannot even be reported by the processor.
#[test]
fn triple_fault() {
    #[rustfmt::skip]
    let code = [
        0xb8, 0x78, 0x56, 0x34, 0x12, // mov $0x12345678, %eax
        0xbb, 0xef, 0xbe, 0xad, 0xde, // mov $0xdeadbeef, %ebx
        0x0f, 0x0b,                   // ud2, without an IDT
    ];
    let mut guest = run(&code);
    guest.exits_with(3);
    guest.log_has(&["triple fault (vCPU 0)", "rip 0x", "instruction", "cr0 0x"]);
    // AMD's hardware leaves nothing of the state, and KVM resets the vCPU before it tells.
    if !guest.log.text().contains("rip 0x000000000000fff0") {
        guest.log_has(&["rip 0x000000000010000a, instruction 0f 0b"]);
        guest.log_has(&["rax 0x0000000012345678", "rbx 0x00000000deadbeef"]);
    }
    dump_has(&guest, "x/3xb 0x100000", "0xb8\t0x78\t0x56");
}

/// An instruction fetched from where there is no memory: KVM cannot emulate it on any host.
#[test]
fn kvm_internal_error() {
    #[rustfmt::skip]
    let code = [
        0xb9, 0x42, 0x00, 0x00, 0x00, // mov $0x42, %ecx
        0xb8, 0x00, 0x00, 0x00, 0xe0, // mov $0xe0000000, %eax
        0xff, 0xe0,                   // jmp *%eax
    ];
    let mut guest = run(&code);
    guest.exits_with(3);
    guest.log_has(&[
        "KVM internal error 1",
        "rip 0x00000000e0000000",
        "rcx 0x0000000000000042",
    ]);
    dump_has(&guest, "p/x $rcx", "0x42");
}

#[test]
fn panic_of_a_payload() {
    let mut guest = Run::new(&Vmi::new("panic"))
        .payload("crash how=panic")
        .start();
    guest.exits_with(3);
    guest.log_has(&["the guest kernel panicked (pvpanic)"]);
}

/// A processor with interrupts off for ever still leaves the launcher in charge.
#[test]
fn halted_for_ever() {
    let vmi = Vmi::new("halt").grace_seconds(0);
    let mut guest = Run::new(&vmi).payload("crash how=halt").start();
    guest.wait_for("CRASH how=halt");
    lets_go_of_its_start(&Process::new(guest.vm_pid()));
    guest.signal(rustix::process::Signal::TERM);
    guest.exits_with(4);
}

/// Nothing happens any more, so all but a few windows of the program are given back.
#[track_caller]
fn lets_go_of_its_start(vm: &Process) {
    let deadline = Instant::now() + PATIENCE;
    while vm.file_kib() > IDLE {
        assert!(Instant::now() < deadline, "{} KiB", vm.file_kib());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn run(code: &[u8]) -> Guest {
    let run = Run::new(&Vmi::new("tiny").memory("64Mi"));
    let kernel = run.dir().join("tiny.elf");
    fs::write(&kernel, elf::tiny(code)).expect("the kernel can be written");
    let dump = dump(&run.dir());
    run.kernel(&kernel).arg("--crash-dump").arg(dump).start()
}

fn dump(directory: &Path) -> PathBuf {
    directory.join("guest.core")
}

/// The user is told where the dump is, and gdb reads it.
#[track_caller]
fn dump_has(guest: &Guest, command: &str, expected: &str) {
    let path = dump(&guest.dir());
    guest.log_has(&[&format!("memory and registers are in {path:?}")]);
    let text = guest::gdb(&guest::payload(), &path, &[command]);
    assert!(text.contains(expected), "{text}");
}
