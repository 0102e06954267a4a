//! What is said of a machine's state is so, and the end comes when it is wanted.

use std::time::Duration;

use podvisor_tests::PATIENCE;
use podvisor_tests::guest;
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::Vmi;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::json;

#[test]
fn a_paused_machine_is_paused_after_a_reset() {
    let vmi = Vmi::new("states").grace_seconds(0);
    let mut guest = Run::new(&vmi).payload("ticker secs=100000").start();
    guest.wait_for("TICK");
    let mut control = guest.control();
    control.pause();
    assert_eq!(control.ask("reset")["state"], "paused");
    assert_eq!(control.status(), "paused");
    guest.console.skip();
    control.resume();
    assert_eq!(control.status(), "running");
    guest.wait_for("podvisor-payload");
    assert_eq!(control.ask("reset")["state"], "running");
    guest.wait_for("podvisor-payload");
    let order = json!({"command": "setLink", "up": true});
    let refused = control.call(json!({"command": "device", "name": "eth9", "order": order}));
    assert_eq!(
        refused["error"],
        json!({"kind": "unknownDevice", "name": "eth9"})
    );
    let metrics = guest.ctl(&["metrics", "name=states"]);
    let metrics = String::from_utf8_lossy(&metrics.stdout);
    let vcpu = r#"kubevirt_vmi_vcpu_seconds_total{id="0",name="states"} "#;
    assert!(
        metrics.lines().any(|line| line.starts_with(vcpu)),
        "{metrics}"
    );
    control.tell("stop");
    guest.exits_with(4);
}

/// A vm process that does not read is not waited for: clients are refused, and a signal ends it.
#[test]
fn a_vm_process_that_stands_still_holds_nobody_up() {
    let vmi = Vmi::new("still").grace_seconds(0);
    let mut guest = Run::new(&vmi).payload("ticker secs=100000").start();
    guest.wait_for("TICK");
    let vm = guest.vm_pid();
    kill_process(vm, Signal::STOP).expect("the vm process runs");
    let mut control = guest.control();
    for _ in 0..16 {
        control.tell("stats");
    }
    for _ in 0..1000 {
        let refused = control.call(json!({"command": "stats"}));
        assert_eq!(refused["error"]["kind"], "busy");
    }
    guest.signal(Signal::TERM);
    guest.exits_with(4);
}

/// The kernel ends a vm process whose launcher is gone, even one that cannot see it.
#[test]
fn a_vm_process_does_not_outlive_its_launcher() {
    let run = Run::new(&Vmi::new("orphan")).payload("ticker secs=100000");
    let below = run.dir();
    let mut guest = run.arg("--open-below").arg(below).start();
    guest.wait_for("TICK");
    // Whatever they wait for.
    let children = [guest.vm_pid(), guest.child("podvisor-open")];
    let children = children.map(|pid| {
        kill_process(pid, Signal::STOP).expect("it runs");
        let handle = pidfd_open(pid, PidfdFlags::empty()).expect("it runs");
        (pid, handle)
    });
    guest.signal(Signal::KILL);
    assert_eq!(guest.wait().code(), None);
    let timeout = Timespec {
        tv_sec: PATIENCE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    for (pid, handle) in children {
        let mut fds = [PollFd::new(&handle, PollFlags::IN)];
        let ended = poll(&mut fds, Some(&timeout)).expect("poll");
        if ended == 0 {
            kill_process(pid, Signal::KILL).expect("it runs");
        }
        assert_eq!(ended, 1, "{pid:?} is still there");
    }
}

/// Nothing is open yet, and there is nothing to wait for: a VMI that nobody writes.
#[test]
fn a_signal_ends_a_start_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let [fifo, vmi, disk] = ["fifo", "vmi.yaml", "disk.img"].map(path);
    mkfifoat(CWD, &*fifo, Mode::RUSR | Mode::WUSR).expect("a pipe");
    std::fs::write(&vmi, Vmi::new("waits").to_yaml()).expect("written");
    std::fs::write(&disk, [0; 512]).expect("written");
    let kernel = guest::payload();
    let kernel = kernel.to_string_lossy();
    let machine = ["run", &vmi, "--kernel", &kernel];
    let console = format!("file:{fifo}");
    for (words, signal) in [
        (vec!["run", &fifo], Signal::TERM),
        (vec!["run", &fifo], Signal::INT),
        (vec!["run", &fifo], Signal::HUP),
        (vec!["run", "-"], Signal::TERM),
        (
            [&machine[..], &["--console", &console]].concat(),
            Signal::TERM,
        ),
        (
            [&machine[..], &["--boot-trace", &fifo]].concat(),
            Signal::TERM,
        ),
        (vec!["customize", &disk, "--run", &fifo], Signal::TERM),
        (vec!["customize", &disk, "--user-data", &fifo], Signal::TERM),
    ] {
        let run = Run::with_arguments([words[0]]);
        let run = words[1..].iter().fold(run, |run, word| run.arg(word));
        // Whoever runs the tests may have told nohup to.
        let run = run.within(["env", "--default-signal=HUP"]).with_input();
        let mut podvisor = run.start_at_once();
        wait_until_handled(&podvisor, signal);
        podvisor.signal(signal);
        podvisor.exits_with(4);
    }
}

/// From then on a signal is not the kernel's to act on.
fn wait_until_handled(podvisor: &Guest, signal: Signal) {
    let status = format!("/proc/{}/status", podvisor.pid().as_raw_nonzero());
    let bit = 1 << (signal.as_raw() - 1);
    loop {
        let status = std::fs::read_to_string(&status).expect("it runs");
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.map(|set| u64::from_str_radix(set.trim(), 16));
        if caught.is_some_and(|set| set.expect("a number") & bit != 0) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
