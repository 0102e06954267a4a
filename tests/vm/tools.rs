//! `virt-probe`, `virt-freezer` and `virt-tail` in the pod of a running machine.

use std::process::{Command, Output, Stdio};

use podvisor_tests::handler::{self, Handler};
use podvisor_tests::run::Guest;

/// Runs a shell's line in the pod's mounts; the first argument is `$0`.
fn inside(pod: &Guest, line: &str, arguments: &[&str]) -> Output {
    let pid = pod.pid().as_raw_nonzero().to_string();
    let mut inside = Command::new("nsenter");
    inside.args(["--target", &pid, "--mount", "sh", "-c", line]);
    inside.args(arguments).stdin(Stdio::null());
    inside.output().expect("nsenter")
}

/// Runs a program of the pod's image, under its name.
fn run(pod: &Guest, name: &str, arguments: &[&str]) -> Output {
    let line = "ln -sf podvisor \"$0\" && exec \"$0\" \"$@\"";
    let link = format!("/run/bin/{name}");
    inside(pod, line, &[&[&*link], arguments].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Without a guest agent: a probe fails, a backup goes on.
#[test]
fn programs_of_the_pod_ask_the_launcher() {
    let pod = handler::pod(30, Vec::new()).start();
    handler::wait_until_ready(&pod);
    let mut handler = Handler::connect(&pod);
    let vmi = handler::vmi("ticker secs=100000");
    handler
        .cmd("SyncVirtualMachine", handler::vmi_request(&vmi))
        .is_done();

    let domain = ["--domainName", "default_testvm", "--timeoutSeconds", "1"];
    let ping = run(
        &pod,
        "virt-probe",
        &[&domain[..], &["--guestAgentPing"]].concat(),
    );
    let said = text(&ping.stderr);
    assert!(
        ping.status.code() == Some(1) && said.contains("GuestPing"),
        "{said}"
    );
    let exec = run(
        &pod,
        "virt-probe",
        &[&domain[..], &["--command", "true", "--", "-x"]].concat(),
    );
    let said = text(&exec.stderr);
    assert!(
        exec.status.code() == Some(255) && said.contains("Exec"),
        "{said}"
    );

    let names = ["--name", "testvm", "--namespace", "default"];
    let freeze = run(&pod, "virt-freezer", &[&["--freeze"][..], &names].concat());
    let said = text(&freeze.stdout);
    assert!(
        freeze.status.success() && said.contains("nothing to freeze"),
        "{said}"
    );

    let log = format!(
        "/var/run/kubevirt-private/{}/virt-serial0-log",
        handler::UID
    );
    let tail = "timeout 60 /run/bin/virt-tail --logfile \"$0\" | grep -m 1 TICK";
    let link = run(&pod, "virt-tail", &["--logfile"]);
    assert!(!link.status.success(), "no file is named");
    let printed = inside(&pod, tail, &[&log]);
    assert!(text(&printed.stdout).contains("TICK"), "{printed:?}");
}
