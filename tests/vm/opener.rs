//! Files that are named while the machine runs: who opens them, what that process is left with, and
//! which it opens.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use podvisor_tests::control::Control;
use podvisor_tests::image::{self, MIB};
use podvisor_tests::proc::Process;
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::Vmi;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

/// CAP_DAC_OVERRIDE: images belong to others.
const OPENS_WHAT_OTHERS_OWN: &str = "0000000000000002";

/// Private memory that the process may have, KiB.
pub const MEMORY: u64 = 1024;

fn start(volumes: Option<&Path>) -> Guest {
    let mut run = Run::new(&Vmi::new("opener").grace_seconds(0)).payload("ticker secs=100000");
    if let Some(volumes) = volumes {
        run = run.arg("--open-below").arg(volumes);
    }
    let guest = run.start();
    guest.wait_for("TICK");
    guest
}

/// `volumes/a/disk.img`, and a link to a file outside of `volumes`.
fn volumes(root: &Path) -> PathBuf {
    let volume = root.join("volumes/a");
    fs::create_dir_all(&volume).expect("writable");
    image::zeros(&volume, "disk.img", MIB);
    fs::write(root.join("secret"), "secret").expect("writable");
    symlink("../../secret", volume.join("link")).expect("a link");
    root.join("volumes")
}

/// What is said to a call with this file.
fn open(control: &mut Control, path: &Path) -> Value {
    control.call(json!({"command": "status", "open": {"path": path}}))
}

#[track_caller]
fn is_refused(reply: &Value, words: &str) {
    let causes = reply["error"]["causes"].to_string();
    assert!(causes.contains(words), "{words} in {reply}");
}

#[test]
fn files_below_a_directory_are_opened_and_no_others() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let volumes = volumes(root.path());
    let mut guest = start(Some(&volumes));
    let opener = Process::new(guest.child("podvisor-open"));
    has_little(&opener, &volumes);

    let mut control = guest.control();
    let reply = open(&mut control, &volumes.join("a/disk.img"));
    // It came to the vm process, and this command has no use for it.
    assert_eq!(reply["error"]["sent"], 1, "{reply}");
    for elsewhere in [root.path().join("secret"), "/etc/passwd".into()] {
        is_refused(
            &open(&mut control, &elsewhere),
            "below none of the directories",
        );
    }
    is_refused(
        &open(&mut control, &volumes.join("a/../../secret")),
        "below none",
    );
    is_refused(&open(&mut control, &volumes.join("a/link")), "ymbolic link");
    is_refused(&open(&mut control, &volumes.join("a")), "a directory");
    has_little(&opener, &volumes);

    // Without it the machine goes on.
    let pid = guest.child("podvisor-open");
    kill_process(pid, Signal::KILL).expect("it runs");
    let reply = open(&mut control, &volumes.join("a/disk.img"));
    is_refused(&reply, "the process that opens files has ended");
    assert_eq!(control.status(), "running");
    guest.signal(Signal::TERM);
    guest.exits_with(4);
    guest.log_has(&["the process that opens files has ended"]);
}

/// It is not there where nothing may be opened later, and ends with the run where it is.
#[test]
fn it_is_there_where_it_is_asked_for() {
    let mut guest = start(None);
    let children = Process::new(guest.pid()).children();
    assert_eq!(children.len(), 1, "the vm process alone");
    let reply = open(&mut guest.control(), Path::new("/etc/passwd"));
    is_refused(&reply, "--open-below");
    guest.signal(Signal::TERM);
    guest.exits_with(4);

    let root = tempfile::tempdir().expect("a temporary directory");
    let mut guest = start(Some(&volumes(root.path())));
    let opener = Process::new(guest.child("podvisor-open"));
    guest.kill_both();
    // A process that is not there has no threads.
    while !opener.threads().is_empty() {
        std::thread::yield_now();
    }
}

/// One thread, one capability, a filter, its socket, the log and its directories.
fn has_little(opener: &Process, volumes: &Path) {
    assert_eq!(opener.threads().len(), 1);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(opener.status(set), OPENS_WHAT_OTHERS_OWN, "{set}");
    }
    assert_eq!(opener.status("NoNewPrivs"), "1");
    assert_eq!(opener.status("Seccomp"), "2");
    assert_eq!(opener.read("environ").trim_matches('\0'), "");
    let descriptors = opener.descriptors();
    let [socket, log, errors, directory] = &descriptors[..] else {
        panic!("{descriptors:?}");
    };
    assert!(socket.starts_with("socket:"), "{descriptors:?}");
    assert!(log.starts_with("pipe:") && log == errors, "{descriptors:?}");
    assert_eq!(Path::new(directory), volumes);
    let memory = opener.private_kib();
    println!("the opener has {memory} KiB for itself");
    assert!(memory <= MEMORY, "{memory} KiB");
}
