//! `podvisor customize`: scripts in guests, and the images that they leave.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use podvisor_tests::image::{self, MIB};
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::{guest, host};
use rustix::process::Signal;

use crate::bootdisk::{extlinux, payload_disk};

/// What the guest would have in common with its copies, and must not have.
const SECRETS: [(&str, &[u8]); 3] = [
    ("etc/machine-id", b"0123456789abcdef0123456789abcdef\n"),
    ("etc/ssh/ssh_host_ed25519_key", b"a key\n"),
    ("var/lib/cloud/instance/boot-finished", b"yes\n"),
];

/// A disk with the test Linux, which applies its seed in the system on the disk.
pub fn linux_disk(dir: &Path) -> PathBuf {
    let cmdline = guest::linux_cmdline("seed");
    let initrd = fs::read(guest::initrd()).expect("the initrd");
    image::linux(dir, "golden.img", &cmdline, &initrd, &SECRETS)
}

fn customize(disk: &Path) -> Run {
    let run = Run::with_arguments(["customize"]).arg(disk);
    run.arg("--no-network").arg("--memory=64Mi").arg("--cpus=1")
}

/// A file of the ext4 on a qcow2 image.
fn content(image: &Path, path: &str) -> String {
    let raw = image.with_extension("raw");
    let (image, raw) = (image.to_string_lossy(), raw.to_string_lossy());
    host("qemu-img", &["convert", "-O", "raw", &image, &raw]);
    host("debugfs", &["-R", &format!("cat {path}"), &raw])
}

/// Names in a directory of the ext4 on that image.
fn names(image: &Path, path: &str) -> String {
    let raw = image.with_extension("raw");
    let list = format!("ls -p {path}");
    host("debugfs", &["-R", &list, &raw.to_string_lossy()])
}

/// Nothing is left but what was there.
#[track_caller]
fn has_only(dir: &Path, names: &[&str]) {
    let found = fs::read_dir(dir).expect("a directory");
    let found = found.map(|entry| entry.expect("an entry").file_name());
    let mut found: Vec<_> = found.collect();
    found.sort();
    assert_eq!(found, names);
}

/// Two guests over one image: a script that succeeds makes a new image, which is flat and knows nobody; one that fails is
/// told with its status, and makes none.
#[test]
fn a_script_makes_a_new_image_or_fails() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let disk = linux_disk(dir);
    let before = image::sha256(&disk);
    let put = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).expect("written");
        path
    };
    let good = put(
        "good.sh",
        // As on the first boot of a system whose machine ID is empty, where systemd is slow.
        "#!/bin/sh\ncat '/etc/a file'\necho made > /etc/made\necho to standard error >&2\n\
         echo transient > /run/id && mount -o bind /run/id /etc/machine-id && \
         mount -o remount,bind,ro /etc/machine-id\n",
    );
    let bad = put("bad.sh", "echo before\nexit 3\n");
    let injected = put("injected", "injected by the test\n");
    let outs = dir.join("outs");
    fs::create_dir(&outs).expect("a directory");

    let mut inject = injected.into_os_string();
    inject.push(":/etc/a file");
    let run = customize(&disk).arg("--run").arg(good);
    let run = run.arg("--inject").arg(inject).arg("--console");
    let run = run.arg(dir.join("console"));
    let mut made = run.arg("--out").arg(outs.join("new.qcow2")).start();
    let run = customize(&disk).arg("--run").arg(bad).arg("-ojson");
    let mut failed = run.arg("--out").arg(outs.join("bad.qcow2")).start_at_once();
    failed.exits_in_the_end_with(6);
    made.exits_in_the_end_with(0);

    let json: serde_json::Value = serde_json::from_str(&failed.console.text()).expect("JSON");
    assert_eq!(
        (&json["status"], &json["exitStatus"]),
        (&3.into(), &6.into())
    );
    assert_eq!(
        (&json["output"], &json["out"]),
        (&"before\n".into(), &None::<()>.into())
    );
    failed.log_has(&["The script failed in the guest with status 3"]);
    assert_eq!(
        made.console.text().lines().collect::<Vec<_>>(),
        ["injected by the test", "to standard error"]
    );
    let console = fs::read_to_string(dir.join("console")).expect("a log");
    assert!(console.contains("RESULT seed=0"), "{console}");

    has_only(&outs, &["new.qcow2"]);
    let new = outs.join("new.qcow2");
    host(
        "qemu-img",
        &["check", "-q", "-f", "qcow2", &new.to_string_lossy()],
    );
    assert_eq!(content(&new, "/etc/made"), "made\n");
    assert_eq!(content(&new, "\"/etc/a file\""), "injected by the test\n");
    assert_eq!(content(&new, "/etc/machine-id"), "", "it is empty");
    assert!(!names(&new, "/etc/ssh").contains("ssh_host"));
    assert!(!names(&new, "/var/lib").contains("cloud"));
    let info = host(
        "qemu-img",
        &["info", "--output=json", &new.to_string_lossy()],
    );
    assert!(!info.contains("backing-filename"), "{info}");
    let space = new.metadata().expect("there").blocks() * 512;
    assert!(space < 48 * MIB as u64, "{space} bytes of a disk of 64 MiB");
    assert_eq!(image::sha256(&disk), before, "the source is as it was");
}

/// A guest that ends without a word, one that goes on for too long, one that somebody stops, and what is refused before
/// there is a guest: nothing is left of any.
#[test]
fn what_does_not_come_to_its_end_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    fs::write(dir.join("script"), "true\n").expect("written");
    fs::create_dir(dir.join("tmp")).expect("a directory");
    let outs = dir.join("outs");
    fs::create_dir(&outs).expect("a directory");
    let script = dir.join("script");
    let run = |disk: &Path| {
        let tmp = format!("TMPDIR={}", dir.join("tmp").display());
        let environment = ["env".to_owned(), tmp];
        let run = customize(disk)
            .within(environment)
            .arg("--run")
            .arg(&script);
        run.arg("--out").arg(outs.join("new.qcow2"))
    };
    let disk = payload_disk(dir, &extlinux("hello"), &[]);
    let mut silent = run(&disk).start();
    silent.exits_with(6);
    silent.log_has(&["powered off and has not said how"]);
    let disk = payload_disk(dir, &extlinux("ticker secs=100000"), &[]);
    let mut late = run(&disk).arg("--timeout=1").start();
    late.exits_with(4);
    late.log_has(&["did not finish in 1 s"]);
    let mut stopped = run(&disk).arg("--log-level=debug").start();
    stopped.wait_until_running();
    stopped.signal(Signal::TERM);
    stopped.exits_with(4);
    stopped.log_has(&["Stopped by a signal"]);
    has_only(&outs, &[]);
    has_only(&dir.join("tmp"), &[]);

    let refused = |run: Run, status, words: &[&str]| {
        let mut refused: Guest = run.start_at_once();
        refused.exits_with(status);
        refused.log_has(words);
    };
    refused(run(Path::new("/dev/null")), 2, &["no disk image"]);
    let missing = customize(&disk).arg("--run=/nowhere");
    refused(missing, 5, &["/nowhere", "No such file"]);
    let nowhere = customize(&disk).arg("--run").arg(&script);
    refused(nowhere.arg("--out=/nowhere/x"), 5, &["/nowhere/x"]);
    fs::write(outs.join("new.qcow2"), "kept").expect("written");
    refused(run(&disk), 2, &["is there already"]);
    has_only(&outs, &["new.qcow2"]);
    has_only(&dir.join("tmp"), &[]);
}
