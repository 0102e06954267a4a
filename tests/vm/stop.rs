//! The ends of a run that are no crash: power off, reset, signals.

use podvisor_tests::image::{self, MIB};
use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Disk, Vmi};
use rustix::process::Signal;

/// Many resets, then an orderly end: nothing of a machine stays behind in the next.
#[test]
fn resets_again_and_again() {
    let vmi = Vmi::new("reset")
        .topology(1, 2, 1)
        .rng()
        .disk(Disk::new("root"))
        .grace_seconds(0);
    let run = Run::new(&vmi);
    let image = image::zeros(&run.dir(), "root.img", MIB);
    let mut guest = run
        .volume("root", &image)
        .payload("crash how=reset")
        .start();
    for _ in 0..8 {
        guest.wait_for("CRASH how=reset");
    }
    guest.signal(Signal::TERM);
    guest.exits_with(4);
}

#[test]
fn exit_on_reboot() {
    let run = Run::new(&Vmi::new("once"))
        .payload("crash how=reset")
        .arg("--exit-on-reboot");
    let mut guest = run.start();
    guest.exits_with(0);
    let text = guest.console.text();
    assert_eq!(
        text.matches("CRASH how=reset").count(),
        1,
        "it ran once: {text}"
    );
}

/// SIGTERM comes when the kernel has not begun to listen, at one moment or another: it boots all the
/// same, and powers off.
#[test]
fn a_press_before_the_guest_listens_is_heard() {
    for milliseconds in [0, 1500] {
        let vmi = Vmi::new("early").grace_seconds(3600);
        let mut guest = Run::new(&vmi).linux("shell").start();
        guest.wait_until_running();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        guest.signal(Signal::TERM);
        guest.exits_with(0);
    }
}

/// An event is not lost that comes while the guest serves another one, with the interrupt masked: KVM then lets go of
/// the line at the unmasking, and somebody has to raise it again.
#[test]
fn an_event_behind_a_mask_is_heard() {
    let mut guest = Run::new(&Vmi::new("masked")).payload("masked").start();
    guest.wait_for("PRESS");
    guest.control().tell("powerButton");
    assert_eq!(guest.result("masked"), "told");
    guest.exits_with(0);
}

/// The payload takes no notice of the power button.
#[test]
fn forced_after_the_grace_period() {
    let vmi = Vmi::new("deaf").grace_seconds(1);
    let mut guest = Run::new(&vmi).payload("ticker").start();
    guest.wait_for("TICK");
    guest.signal(Signal::TERM);
    guest.exits_with(4);
    guest.log_has(&[
        "did not power off",
        "The machine was stopped before its guest powered off",
    ]);
}

#[test]
fn second_signal_stops_at_once() {
    let vmi = Vmi::new("hurry").grace_seconds(3600);
    let mut guest = Run::new(&vmi).payload("ticker secs=100000").start();
    guest.wait_for("TICK");
    guest.signal(Signal::TERM);
    guest
        .log
        .wait_for("pressing the power button", podvisor_tests::PATIENCE);
    guest.signal(Signal::INT);
    guest.exits_with(4);
}

#[test]
fn stopped_by_a_control_client() {
    let mut guest = Run::new(&Vmi::new("ctl"))
        .payload("ticker secs=100000")
        .start();
    guest.wait_for("TICK");
    guest.control().tell("stop");
    guest.exits_with(4);
}

/// The vm process does not outlive its launcher.
#[test]
fn a_killed_launcher_takes_the_guest_along() {
    let mut guest = Run::new(&Vmi::new("orphan"))
        .payload("ticker secs=100000")
        .start();
    guest.wait_for("TICK");
    guest.signal(Signal::KILL);
    // The console ends when the last process that has it is gone.
    assert_eq!(guest.wait().code(), None);
}
