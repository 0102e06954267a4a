//! gdb at a running machine.

use std::fs;
use std::path::PathBuf;

use podvisor_tests::gdb::Gdb;
use podvisor_tests::guest;
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::Vmi;
use podvisor_tests::{PATIENCE, free_port};

/// A machine that waits for gdb, and the socket that it waits on.
pub fn start(run: Run) -> (Guest, PathBuf) {
    let socket = run.dir().join("gdb.sock");
    let target = format!("unix:{}", socket.display());
    let guest = run.arg("--gdb").arg(target).start();
    guest.wait_until_running();
    (guest, socket)
}

/// Linux with two vCPUs from its first instruction to its end, under gdb and after it has left.
#[test]
fn gdb_debugs_the_kernel_of_linux() {
    let run = Run::new(&Vmi::new("gdb").topology(1, 2, 1));
    let (mut guest, socket) = start(run.linux("hello,topology"));
    let mut gdb = Gdb::start(&guest::vmlinux());
    gdb.ask(&format!("target remote {}", socket.display()), "0x");

    // Nothing has run: the entry point is where the ELF's note says, and no other vCPU is there.
    assert_eq!(
        gdb.value("$pc"),
        gdb_symbol(&mut gdb, "pvh_start_xen") & 0x7fff_ffff
    );
    gdb.ask("info threads", "vCPU 1");
    assert_eq!(gdb.value("$cr0 >> 31"), 0, "paging is off");

    // By the processor's hardware, where there is no memory yet under this address.
    gdb.tell("hbreak start_kernel");
    gdb.tell("continue");
    gdb.wait_for("in start_kernel ()");
    assert_eq!(gdb.value("$cr0 >> 31"), 1, "paging is on");
    assert_ne!(gdb.value("$gs_base"), 0);
    gdb.ask("bt", "#1");
    gdb.ask("x/s &linux_banner", "\"Linux version 6.1.");
    gdb.tell("delete");

    // In memory, and steps from there.
    gdb.tell("break kernel_init");
    gdb.tell("continue");
    gdb.wait_for("in kernel_init ()");
    gdb.ask("bt", "in ret_from_fork ()");
    let at = gdb.value("$pc");
    assert_ne!(
        gdb.value("*(unsigned char *)$pc"),
        0xcc,
        "the instruction is back"
    );
    gdb.tell("stepi");
    let next = gdb.value("$pc");
    assert!(next != at && next - at < 16, "{at:x} {next:x}");
    gdb.tell("delete");

    // The same memory by both kinds of addresses.
    let physical = gdb_symbol(&mut gdb, "linux_banner") & 0x7fff_ffff;
    gdb.tell("monitor physical on");
    gdb.ask(&format!("x/s {physical:#x}"), "\"Linux version 6.1.");
    gdb.tell("monitor physical off");

    // Registers and memory can be written.
    let stack = gdb.value("*(unsigned long *)($rsp - 64)");
    gdb.tell("set *(unsigned long *)($rsp - 64) = 0x1234");
    assert_eq!(gdb.value("*(unsigned long *)($rsp - 64)"), 0x1234);
    gdb.tell(&format!("set *(unsigned long *)($rsp - 64) = {stack:#x}"));
    let saved = gdb.value("$r15");
    gdb.tell("set $r15 = 0x5678");
    assert_eq!(gdb.value("$r15"), 0x5678);
    gdb.tell(&format!("set $r15 = {saved:#x}"));

    gdb.tell("continue");
    guest.wait_for("GUEST-INIT-READY");
    gdb.interrupt();
    gdb.wait_for("SIGINT");
    // It is not the debugger's alone.
    let registers = guest.ctl(&["registers"]);
    let text = String::from_utf8_lossy(&registers.stdout).into_owned();
    let rip = format!("rip {:#018x}", gdb.value("$pc"));
    assert!(
        text.contains("vCPU 1\n") && text.contains(&rip),
        "{rip} {text}"
    );
    guest.ctl_does(&["pause"]);
    guest.ctl_does(&["status"]);
    guest.ctl_does(&["resume"]);
    gdb.tell("detach");
    assert_eq!(guest.result("cpus"), "2");
    guest.exits_with(0);
    guest.log_has(&["a debugger holds the machine", "the debugger has left"]);
}

fn gdb_symbol(gdb: &mut Gdb, name: &str) -> u64 {
    gdb.value(&format!("&{name}"))
}

/// What becomes of a machine that gdb holds when somebody else has it reset, saved and ended; and data that gdb watches.
#[test]
fn a_machine_that_gdb_holds_obeys_others() {
    let run = Run::new(&Vmi::new("held").topology(1, 2, 1).grace_seconds(0));
    let (mut guest, socket) = start(run.payload("ticker secs=100000"));
    let mut gdb = Gdb::start(&guest::payload());
    gdb.ask(&format!("target remote {}", socket.display()), "0x");
    let first = gdb.value("$pc");

    // A breakpoint in memory is not the guest's, so there is no snapshot with it.
    gdb.tell("set breakpoint always-inserted on");
    gdb.tell(&format!("break *{:#x}", first + 1));
    assert_ne!(gdb.value("$pc"), 0);
    let directory = guest.dir().join("snapshot");
    fs::create_dir(&directory).expect("a directory");
    let path = directory.to_str().expect("UTF-8");
    let refused = guest.ctl(&["snapshot", path]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("A debugger has breakpoints"), "{text}");
    guest.ctl_does(&["resume"]);
    gdb.tell("delete");

    gdb.tell("continue");
    guest.wait_for("TICK cpu=1");
    guest.ctl_does(&["reset"]);
    // The next one begins as the first did.
    gdb.wait_for("SIGTRAP");
    assert_eq!(gdb.value("$pc"), first);
    // What was said before the reset.
    guest.console.skip();
    gdb.tell("continue");
    guest.wait_for("TICK cpu=1");
    gdb.interrupt();
    gdb.wait_for("SIGINT");
    let mut control = guest.control();
    guest.ctl_does(&["pause"]);
    assert_eq!(control.status(), "paused");
    control.resume();
    assert_eq!(control.status(), "running");
    gdb.tell("kill");
    guest.exits_with(4);

    let run = Run::new(&Vmi::new("ended").grace_seconds(0));
    let (mut guest, socket) = start(run.payload("ticker secs=100000"));
    let mut gdb = Gdb::start(&guest::payload());
    gdb.ask(&format!("target remote {}", socket.display()), "0x");
    data_is_watched(&guest, &mut gdb);
    guest.control().tell("stop");
    guest.exits_with(4);
}

/// By the host's KVM, or, where that refuses, by gdb's own steps: both stop behind the instruction of the entry that
/// writes there, the fourth.
#[track_caller]
fn data_is_watched(guest: &Guest, gdb: &mut Gdb) {
    const BEHIND_IT: u64 = 14;
    let first = gdb.value("$pc");
    let watch = "watch *(unsigned int *)&boot_start_info";
    gdb.tell(watch);
    gdb.tell("continue");
    match gdb.value("$pc") - first {
        0 => {
            guest.log_has(&["set can-use-hw-watchpoints 0"]);
            gdb.tell("delete");
            gdb.tell("set can-use-hw-watchpoints 0");
            gdb.tell(watch);
            gdb.tell("continue");
            assert_eq!(gdb.value("$pc") - first, BEHIND_IT);
        }
        far => assert_eq!(far, BEHIND_IT),
    }
    assert_ne!(gdb.value("*(unsigned int *)&boot_start_info"), 0);
    gdb.tell("delete");
}

/// A crash is shown before it is the end.
#[test]
fn gdb_sees_a_crash() {
    let run = Run::new(&Vmi::new("dying")).payload("crash how=triple");
    let (mut guest, socket) = start(run.arg("--symbols").arg(guest::payload()));
    let mut gdb = Gdb::start(&guest::payload());
    gdb.ask(&format!("target remote {}", socket.display()), "0x");
    gdb.tell("continue");
    gdb.wait_for("SIGABRT");
    gdb.tell("continue");
    gdb.wait_for("exited");
    guest.exits_with(3);
    guest.log_has(&["triple fault"]);
    // AMD's hardware leaves nothing of the state.
    if !guest.log.text().contains("rip 0x000000000000fff0") {
        guest.log_has(&["rip is in", "triple_fault"]);
    }
}

/// One who comes by a port and goes without a word has held nothing for good.
#[test]
fn gdb_by_a_port() {
    let port = free_port();
    let run = Run::new(&Vmi::new("port")).payload("hello");
    let address = format!("127.0.0.1:{port}");
    let mut guest = run.arg("--gdb").arg(&address).start();
    guest.log.wait_for("waits for gdb", PATIENCE);
    guest.wait_until_running();
    let mut gdb = Gdb::start(&guest::payload());
    gdb.ask(&format!("target remote {address}"), "0x");
    drop(gdb);
    guest.wait_for("PAYLOAD-DONE");
    guest.exits_with(0);
}
