//! Exit statuses and messages that need neither KVM nor a guest.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{example, podvisor};
use devices::testing::missing;
use tempfile::TempDir;

/// Exit status and standard error.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().expect("run");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[track_caller]
fn check(command: &mut Command, status: i32, words: &[&str]) {
    let (found, stderr) = run(command);
    assert_eq!(found, Some(status), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in {stderr}");
    }
}

fn temp() -> TempDir {
    tempfile::tempdir().expect("temporary directory")
}

#[test]
fn bad_usage() {
    check(&mut podvisor(), 2, &["Usage"]);
    check(podvisor().arg("fly"), 2, &["fly"]);
    check(
        podvisor().args(["run", "x", "--console", "tty"]),
        2,
        &["file:PATH"],
    );
    check(
        podvisor().args(["run", "x", "--volume", "root"]),
        2,
        &["NAME=PATH"],
    );
    check(
        podvisor().args(["run", "x", "--control", "/x"]),
        2,
        &["unix:PATH"],
    );
    check(
        podvisor().args(["run", "x", "--cmdline", "a\nb"]),
        2,
        &["control characters"],
    );
    check(
        podvisor().args(["run", "x", "--firmware", "/x", "--kernel", "/y"]),
        2,
        &["--firmware", "--kernel"],
    );
    check(podvisor().arg("run"), 2, &["STANDALONE_VMI"]);
}

#[test]
fn options_that_do_not_fit_the_vmi() {
    let minimal = example("minimal.yaml");
    let path = "spec.domain.devices.disks";
    check(podvisor().arg("run").arg(&minimal), 2, &[path, "--kernel"]);
    let firmware = ["--firmware", "/nonexistent"];
    let server = example("server.yaml");
    let words = ["--firmware", "kernelBoot"];
    check(podvisor().arg("run").args(firmware).arg(server), 2, &words);
    // Neither a kernel nor a disk is asked for.
    let words = ["firmware \"/nonexistent\""];
    check(
        podvisor().arg("run").args(firmware).arg(&minimal),
        5,
        &words,
    );
    let args = ["--kernel", "/dev/null", "--volume", "root=/x"];
    check(
        podvisor().arg("run").arg(&minimal).args(args),
        2,
        &["--volume", "\"root\""],
    );
    let args = ["--kernel", "/dev/null", "--overlay", "root=/x"];
    check(
        podvisor().arg("run").arg(&minimal).args(args),
        2,
        &["--overlay", "\"root\""],
    );
    let args = [
        "--kernel",
        "/dev/null",
        "--volume",
        "root=/x",
        "--volume",
        "root=/y",
    ];
    check(
        podvisor().arg("run").arg(example("demo.yaml")).args(args),
        2,
        &["--volume", "twice"],
    );
}

#[test]
fn console_of_a_machine_without_one() {
    let dir = temp();
    let path = dir.path().join("vmi.yaml");
    let text = fs::read_to_string(example("minimal.yaml")).expect("example");
    fs::write(&path, text + "      autoattachSerialConsole: false\n").expect("VMI");
    let mut command = podvisor();
    command.args(["run", "--kernel", "/nonexistent"]).arg(path);
    check(&mut command, 5, &[]);
    command.args(["--console", "stdio"]);
    check(
        &mut command,
        2,
        &["spec.domain.devices.autoattachSerialConsole"],
    );
}

#[test]
fn missing_files() {
    check(
        podvisor().args(["run", "/nonexistent.yaml"]),
        5,
        &["/nonexistent.yaml"],
    );
    check(
        podvisor().args(["new", "/nonexistent.img"]),
        5,
        &["Cannot read \"/nonexistent.img\"", "No such file"],
    );
    let run = |args: &[&str]| {
        let mut command = podvisor();
        command.arg("run").arg(example("minimal.yaml")).args(args);
        command
    };
    // Without /dev/kvm that is what is missed first; the status is the same.
    let kvm = Path::new("/dev/kvm").exists();
    let words = |words: &'static [&'static str]| if kvm { words } else { &["/dev/kvm"] };
    let path = "/nonexistent";
    check(
        &mut run(&["--kernel", path]),
        5,
        words(&["kernel", "/nonexistent"]),
    );
    check(
        &mut run(&["--kernel", "/dev"]),
        5,
        words(&["a directory", "/dev"]),
    );
    let args = ["--kernel", "/bin/sh", "--initrd", path];
    check(
        &mut run(&args),
        5,
        words(&["initial RAM disk", "/nonexistent"]),
    );
    let args = ["--kernel", "/bin/sh", "--console", "file:/nonexistent/log"];
    check(&mut run(&args), 5, words(&["/nonexistent/log"]));
    let args = [
        "--kernel",
        "/bin/sh",
        "--console",
        "unix:/nonexistent/socket",
    ];
    check(&mut run(&args), 5, words(&["/nonexistent/socket"]));
}

#[test]
fn missing_volume_names_where_it_was_looked_for() {
    if !Path::new("/dev/kvm").exists() {
        return missing("no /dev/kvm");
    }
    let mut command = podvisor();
    command
        .args(["run", "--kernel", "/bin/sh"])
        .arg(example("demo.yaml"));
    let place = "/var/run/kubevirt-private/vmi-disks/root/disk.img";
    check(&mut command, 5, &[place, "/dev/root", "--volume NAME=PATH"]);
    command.args(["--volume", "root=/nonexistent.img"]);
    check(&mut command, 5, &["/nonexistent.img"]);
}

#[test]
fn socket_in_use() {
    if !Path::new("/dev/kvm").exists() {
        return missing("no /dev/kvm");
    }
    let dir = temp();
    let path = dir.path().join("socket");
    let _listener = UnixListener::bind(&path).expect("socket");
    let mut command = podvisor();
    command
        .args(["run", "--kernel", "/bin/sh"])
        .arg(example("minimal.yaml"));
    command
        .arg("--control")
        .arg(format!("unix:{}", path.display()));
    check(&mut command, 5, &["control socket", "in use"]);
}

#[test]
fn documents_from_standard_input_and_the_environment() {
    let text = fs::read(example("minimal.yaml")).expect("example");
    let mut command = podvisor();
    command
        .args(["plan", "-", "--kernel", "/k"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("run");
    child
        .stdin
        .take()
        .expect("pipe")
        .write_all(&text)
        .expect("write");
    assert!(child.wait().expect("wait").success());

    let text = String::from_utf8(text).expect("UTF-8");
    let mut command = podvisor();
    command
        .args(["plan", "--kernel", "/k"])
        .env("STANDALONE_VMI", &text);
    check(&mut command, 0, &[]);
    command.env("STANDALONE_VMI", "kind: [");
    check(&mut command, 2, &["$STANDALONE_VMI", "Line 1, column"]);
}

#[test]
fn a_dry_run_is_a_plan() {
    let minimal = example("minimal.yaml");
    let printed = |words: &[&str]| {
        let mut command = podvisor();
        let output = command.args(words).arg(&minimal).args(["--kernel", "/k"]);
        let output = output.output().expect("run");
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let plan = printed(&["plan"]);
    assert!(!plan.is_empty());
    assert!(printed(&["run", "--dry-run"]) == plan);
    assert!(printed(&["run", "--dry-run", "--detach"]) == plan);
}

#[test]
fn validate_says_so() {
    let output = podvisor()
        .arg("validate")
        .arg(example("server.yaml"))
        .output()
        .expect("run");
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("server.yaml: valid\n"), "{text}");
    assert!(text.contains("note: spec.evictionStrategy: "), "{text}");
    let kernel = "needs: a kernel at /var/run/kubevirt/container-disks/kernel-boot/vmlinuz, or";
    assert!(text.contains(kernel), "{text}");
    let volume = "/vmi-disks/goods/goods.img, or --volume goods=PATH\n";
    assert!(text.contains(volume), "{text}");
}

/// A file that is missing does not hide the verdict on the others.
#[test]
fn validate_says_so_of_each_file() {
    let minimal = example("minimal.yaml");
    let validate = |format| {
        let mut command = podvisor();
        command
            .args(["validate", "-o", format])
            .arg(&minimal)
            .arg("/nonexistent");
        let output = command.output().expect("run");
        assert_eq!(output.status.code(), Some(5));
        String::from_utf8(output.stdout).expect("text")
    };
    let text = validate("text");
    assert!(text.contains("minimal.yaml: valid\n"), "{text}");
    assert!(
        text.contains("/nonexistent: not valid\n  error: Cannot read"),
        "{text}"
    );
    let verdicts: serde_json::Value = serde_json::from_str(&validate("json")).expect("JSON");
    assert_eq!(verdicts[0]["valid"], true, "{verdicts}");
    assert_eq!(verdicts[1]["valid"], false, "{verdicts}");
}

#[test]
fn what_a_machine_refers_to_is_given_beside_it() {
    let directory = temp();
    let write = |name: &str, text: &str| {
        let file = directory.path().join(name);
        fs::write(&file, text).expect("a file");
        file
    };
    let vm = write(
        "vm.yaml",
        "apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: vm, namespace: mine}
spec:
  instancetype: {inferFromVolume: root}
  dataVolumeTemplates:
  - metadata: {name: disk}
    spec: {sourceRef: {kind: DataSource, name: image, namespace: golden}}
  template:
    spec:
      domain: {devices: {}}
      volumes: [{name: root, dataVolume: {name: disk}}]
",
    );
    let alone = podvisor().arg("validate").arg(&vm).output().expect("run");
    assert_eq!(alone.status.code(), Some(2));
    let text = String::from_utf8_lossy(&alone.stdout);
    for words in [
        "spec.instancetype.inferFromVolume: found DataSource \"golden/image\"",
        "kubectl get datasource image -n golden -o yaml",
        "(line 5, column ",
    ] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
    let golden = write(
        "golden.yaml",
        "apiVersion: cdi.kubevirt.io/v1beta1
kind: DataSource
metadata: {name: image, namespace: golden}
spec: {source: {pvc: {name: disk, namespace: golden}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: disk
  namespace: golden
  labels: {instancetype.kubevirt.io/default-instancetype: two}
",
    );
    let sizes = write(
        "sizes.yaml",
        "apiVersion: instancetype.kubevirt.io/v1beta1
kind: VirtualMachineClusterInstancetype
metadata: {name: two}
spec: {cpu: {guest: 2}, memory: {guest: 256Mi}}
",
    );
    let mut plan = podvisor();
    plan.arg("plan").arg(&vm).args(["--kernel", "/k", "-f"]);
    plan.arg(&golden).arg("-f").arg(&sizes);
    let output = plan.output().expect("run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(plan["machine"]["cpu"]["sockets"], 2);
}

/// A reader that has gone is no error.
#[test]
fn nobody_reads_the_answer() {
    let minimal = example("minimal.yaml");
    for arguments in [&["validate"][..], &["plan", "--kernel", "/k"]] {
        let mut command = podvisor();
        command.args(arguments).arg(&minimal);
        let (reader, writer) = std::io::pipe().expect("pipe");
        drop(reader);
        let (status, stderr) = run(command.stdout(writer));
        assert_eq!((status, &*stderr), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn long_values_are_not_echoed() {
    let long = "x".repeat(64 << 10);
    for option in ["--cmdline", "--volume", "--console"] {
        let mut command = podvisor();
        let (status, stderr) = run(command.args(["run", "x", option, &long]));
        assert_eq!(status, Some(2));
        assert!(stderr.contains(option) && stderr.len() < 1000, "{stderr}");
    }
}

/// The status and the way out are those of the limit, not of what it was first met at.
#[test]
fn limits_on_the_process() {
    if !Path::new("/dev/kvm").exists() {
        return missing("no /dev/kvm");
    }
    for files in 5..8 {
        let script = "ulimit -n $2; exec \"$0\" run \"$1\" --kernel /bin/sh";
        let mut command = Command::new("bash");
        command.args(["-c", script, env!("CARGO_BIN_EXE_podvisor")]);
        command.arg(example("minimal.yaml")).arg(files.to_string());
        check(command.stdin(Stdio::null()), 5, &["limit on open files"]);
    }
}

/// A VMI with a device of the host, and a command that has little locked memory, or as much as this process.
fn with_host_device(option: &str, may_lock: bool) -> Command {
    let may_not = "ulimit -l 64; exec setpriv --bounding-set=-sys_resource";
    let limit = if may_lock { "exec" } else { may_not };
    let script = format!("{limit} \"$0\" run \"$1\" --kernel /bin/sh {option}");
    let mut command = Command::new("bash");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_podvisor")]);
    command
        .arg(example("../launcher/tests/plans/host-devices.yaml"))
        .stdin(Stdio::null());
    command
}

/// Said before anything is changed. What comes behind the limit is in `tests/vm/hardware/host_devices.rs`, where it can be raised.
#[test]
fn devices_of_the_host_that_cannot_be_had() {
    if !Path::new("/dev/kvm").exists() {
        return missing("no /dev/kvm");
    }
    let wanted = [
        "spec.domain.devices",
        "1536 MiB of locked memory",
        "64 KiB",
        "ulimit -l",
    ];
    check(&mut with_host_device("", false), 5, &wanted);
    let restored = "--restore /nowhere";
    check(
        &mut with_host_device(restored, true),
        2,
        &["--restore", "\"qat\""],
    );
    let twice = "--host-device qat=0000:00:03.0 --host-device fast=0000:00:03.0";
    check(&mut with_host_device(twice, true), 2, &["--host-device"]);
    check(
        &mut with_host_device("--host-device qat=../x", true),
        2,
        &["NAME=ADDRESS"],
    );
}

#[test]
fn ctl_without_a_machine() {
    let dir = temp();
    let path = dir.path().join("none");
    check(
        podvisor().args(["ctl", "--vm"]).arg(path).arg("status"),
        5,
        &["control socket", "--control"],
    );
}
