//! Pause and resume, seen by a Linux on a console that comes and goes, and by a payload.

use std::time::{Duration, Instant};

use podvisor_tests::control::Control;
use podvisor_tests::guest;
use podvisor_tests::image::{self, MIB};
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::{Disk, Vmi};
use rustix::process::Signal;
use serde_json::Value;

use crate::console::Terminal;

/// How long guests are paused; that nothing happens can only be seen by waiting.
const PAUSE: Duration = Duration::from_secs(3);

/// A driver silences its device as a kernel does that is about to load another.
#[test]
fn a_device_without_bus_mastering_waits() {
    let mut guest = Run::new(&Vmi::new("silent").rng())
        .payload("silent")
        .start();
    assert_eq!(guest.result("silent"), "ok");
    guest.exits_with(0);
}

/// A shell on a socket: input, output, a second client, counters, pause, and the power button.
#[test]
fn linux_shell_pause_and_power_button() {
    let run = Run::new(
        &Vmi::new("shell")
            .disk(Disk::new("root"))
            .rng()
            .grace_seconds(3600),
    );
    let image = image::filled(&run.dir(), "root.img", MIB);
    let socket = run.dir().join("console.sock");
    let console = format!("unix:{}", socket.display());
    let run = run
        .volume("root", &image)
        .linux("shell")
        .arg("--console")
        .arg(&console);
    let mut guest = run.start();
    guest.wait_until_running();

    let first = Terminal::connect(&socket);
    first.wait_for_prompt();
    first.type_line("echo first=$((6 * 7))");
    first.wait_for("first=42");
    drop(first);
    let terminal = Terminal::connect(&socket);
    terminal.type_line("head -c 65536 /dev/vda | wc -c; echo second=$((6 * 7))");
    terminal.wait_for("65536");
    terminal.wait_for("second=42");

    let mut control = guest.control();
    let stats = control.stats();
    assert!(number(&stats, "/devices/root/readRequests") > 0, "{stats}");
    assert!(
        number(&stats, "/devices/root/readBytes") >= 65536,
        "{stats}"
    );
    assert!(number(&stats, "/memoryResident") > MIB as u64, "{stats}");

    time_stands_still_in_a_pause(&terminal, &mut control);

    // A signal wakes a paused machine, for else it could not power off.
    control.pause();
    guest.signal(Signal::TERM);
    guest.exits_with(0);
    assert!(!socket.exists(), "the socket goes away with the machine");
}

/// Both vCPUs of a payload count as fast as they can; paused, none of them runs.
#[test]
fn paused_vcpus_stand_still() {
    let run = Run::new(&Vmi::new("ticker").topology(1, 2, 1)).payload("ticker secs=100000");
    let mut guest = run.start();
    guest.wait_for("TICK cpu=0");
    guest.wait_for("TICK cpu=1");
    let mut control = guest.control();
    control.pause();
    let before = control.stats();
    let said = guest.console.lines().len();
    std::thread::sleep(PAUSE);
    let after = control.stats();
    assert_eq!(before["vcpuExits"], after["vcpuExits"]);
    for vcpu in 0..2 {
        let time = |stats| number(stats, &format!("/vcpuTimeNs/{vcpu}"));
        let spent = Duration::from_nanos(time(&after) - time(&before));
        assert!(
            spent < PAUSE / 100,
            "vCPU {vcpu} ran for {spent:?} while it was paused"
        );
        assert!(time(&before) > 0);
    }
    // What was under way when the vCPUs stopped may still have come, and no more.
    let came = guest.console.lines().len() - said;
    assert!(came <= 2, "{came} lines during the pause");

    guest.console.skip();
    control.resume();
    guest.wait_for("TICK cpu=0");
    guest.wait_for("TICK cpu=1");
    assert_consecutive(&ticks(&guest));

    // A dump is another pause. It says how far it is to who looks.
    let dumps = ["guest.core", "seen.core"].map(|name| guest.dir().join(name));
    let [dump, seen] = dumps.each_ref().map(|path| path.to_str().expect("UTF-8"));
    let silent = guest.ctl(&["dump", dump]);
    assert!(silent.status.success(), "{silent:?}");
    assert!(silent.stderr.is_empty(), "{silent:?}");
    let shown = guest.ctl_on_a_terminal(&["dump", seen]);
    let whole = format!("podvisor: writing {seen:?} ");
    assert!(
        shown.contains(&whole) && shown.contains(" MiB/s\r\n{\"id\""),
        "{shown}"
    );
    assert_eq!(control.status(), "running");
    guest.console.skip();
    guest.wait_for("TICK cpu=0");
    let text = guest::gdb(&guest::payload(), &dumps[0], &["info threads"]);
    assert!(text.contains("LWP 1") && text.contains("LWP 2"), "{text}");
    control.tell("stop");
    guest.exits_with(4);
}

/// Pauses a guest with a shell on `terminal`; its clock must not show it.
pub fn time_stands_still_in_a_pause(terminal: &Terminal, control: &mut Control) {
    let (before, seen_before) = (uptime(terminal), Instant::now());
    control.pause();
    assert_eq!(control.status(), "paused");
    std::thread::sleep(PAUSE);
    control.resume();
    let (after, passed) = (uptime(terminal), seen_before.elapsed());
    let jump = (after - before) - (passed - PAUSE).as_secs_f64();
    assert!(
        jump.abs() < PAUSE.as_secs_f64() / 2.0,
        "the guest's clock jumped by {jump} s"
    );
}

fn uptime(terminal: &Terminal) -> f64 {
    terminal.type_line("read up idle < /proc/uptime; echo uptime=$up=");
    terminal.wait_for_match(|line| {
        line.strip_prefix("uptime=")?
            .strip_suffix('=')?
            .parse()
            .ok()
    })
}

/// Each `n` that CPU 0 printed.
fn ticks(guest: &Guest) -> Vec<u64> {
    let tick = |text: &str| {
        let n = text.strip_prefix("TICK cpu=0 n=")?.split(' ').next()?;
        n.parse().ok()
    };
    guest
        .console
        .lines()
        .iter()
        .filter_map(|line| tick(&line.text))
        .collect()
}

fn assert_consecutive(ticks: &[u64]) {
    for pair in ticks.windows(2) {
        assert_eq!(pair[0] + 1, pair[1], "no tick is lost or said twice");
    }
}

fn number(stats: &Value, pointer: &str) -> u64 {
    let value = stats.pointer(pointer).and_then(Value::as_u64);
    value.unwrap_or_else(|| panic!("{pointer} is missing: {stats}"))
}
