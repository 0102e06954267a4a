//! The programs of KubeVirt's pods that podvisor is under their names.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::podvisor;
use tempfile::tempdir;

/// The binary under another name, as the image's links give it.
fn tool(name: &str) -> Command {
    let mut command = podvisor();
    command.arg0(format!("/usr/bin/{name}"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Status and output of a program that ends by itself.
fn run(mut command: Command) -> (i32, String, String) {
    let output = command.output().expect("podvisor");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let status = output.status.code().expect("a status");
    (status, text(output.stdout), text(output.stderr))
}

fn status(child: &mut Child) -> i32 {
    let status = child.wait().expect("a child");
    status.code().expect("it exits")
}

/// Waits for something that another process does.
#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn terminate(child: &Child) {
    let kill = Command::new("kill").arg(child.id().to_string()).status();
    assert!(kill.expect("kill").success());
}

/// As the init container has it: to a volume that the disk's container mounts as its `/usr/bin`.
#[test]
fn a_program_is_copied_with_all_that_it_has() {
    let directory = tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    fs::write(at("program"), "text").expect("ours");
    fs::set_permissions(at("program"), fs::Permissions::from_mode(0o755)).expect("ours");
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::options()
        .write(true)
        .open(at("program"))
        .expect("ours")
        .set_modified(then)
        .expect("ours");
    symlink("program", at("container-disk")).expect("ours");
    fs::create_dir(at("bin")).expect("ours");
    let copy = |target: &Path| {
        let mut cp = tool("cp");
        cp.arg("--preserve=all")
            .arg(at("container-disk"))
            .arg(target);
        run(cp)
    };
    for (target, made) in [("bin/named", "bin/named"), ("bin", "bin/container-disk")] {
        assert_eq!(copy(&at(target)), (0, String::new(), String::new()));
        let found = fs::symlink_metadata(at(made)).expect("copied");
        assert!(found.is_file(), "links are followed");
        assert_eq!(
            (found.mode() & 0o7777, found.mtime()),
            (0o755, 1_000_000_000)
        );
        assert_eq!(fs::read(at(made)).expect("copied"), b"text");
    }
    let (status, _, error) = copy(&at("program"));
    assert!(status == 1 && error.contains("same file"), "{error}");
    assert_eq!(fs::read(at("program")).expect("kept"), b"text");
    let (status, _, error) = copy(&at("missing/directory"));
    assert!(
        status == 1 && error.contains("missing/directory"),
        "{error}"
    );
}

#[test]
fn a_container_disk_listens_until_its_socket_is_removed() {
    let directory = tempdir().expect("a temporary directory");
    let path = directory.path().join("disks/disk_0");
    let socket = directory.path().join("disks/disk_0.sock");
    let start = || {
        let child = tool("container-disk").arg("--copy-path").arg(&path).spawn();
        wait_until("it listens", || UnixStream::connect(&socket).is_ok());
        child.expect("podvisor")
    };
    let mut child = start();
    assert!(
        child.try_wait().expect("a child").is_none(),
        "a client does not end it"
    );
    fs::remove_file(&socket).expect("the monitor's right");
    assert_eq!(status(&mut child), 0);

    let mut child = start();
    terminate(&child);
    assert_eq!(status(&mut child), 0);
    assert!(!socket.exists(), "it cleans up");

    let mut nothing = tool("container-disk");
    nothing.arg("--no-op");
    assert_eq!(run(nothing).0, 0);
    let (status, _, error) = run(tool("container-disk"));
    assert!(status == 2 && error.contains("--copy-path"), "{error}");
}

/// The hotplug pod, the pods that make a volume bind, and the one that holds an image.
#[test]
fn a_shell_knows_what_kubevirt_says() {
    let shell = |name: &str, arguments: &[&str]| {
        let mut shell = tool(name);
        shell.arg("-c").args(arguments);
        run(shell)
    };
    assert_eq!(shell("bash", &["echo", "bound PVCs"]).0, 0);
    assert_eq!(shell("bash", &["exit", "0"]).0, 0);
    assert_eq!(shell("sh", &["exit 3"]).0, 3);
    assert_eq!(shell("sh", &["echo a b"]).1, "a b\n");
    assert_eq!(shell("sh", &["/usr/bin/container-disk --no-op"]).0, 0);
    assert_eq!(shell("sh", &["node-labeller.sh"]).0, 127);
    assert_eq!(shell("sh", &["ls /meta/migrated || exit 42"]).0, 2);

    let directory = tempdir().expect("a temporary directory");
    let command = format!(
        "/usr/bin/container-disk --copy-path {}/hp",
        directory.path().display()
    );
    let mut child = tool("sh").args(["-c", &command]).spawn().expect("podvisor");
    let socket = directory.path().join("hp.sock");
    wait_until("it listens", || UnixStream::connect(&socket).is_ok());
    terminate(&child);
    assert_eq!(status(&mut child), 0);
    let mut child = tool("sh")
        .args(["-c", "sleep infinity"])
        .spawn()
        .expect("podvisor");
    wait_until("it waits for signals", || has_blocked(&child));
    terminate(&child);
    assert_eq!(status(&mut child), 0);
}

/// Whether SIGTERM would wait.
fn has_blocked(child: &Child) -> bool {
    let text = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("a process");
    let mask = text.lines().find_map(|line| line.strip_prefix("SigBlk:\t"));
    let mask = u64::from_str_radix(mask.expect("a mask"), 16).expect("a number");
    mask & 1 << (15 - 1) != 0
}

/// It begins before there is a directory, and follows a log that is made anew.
#[test]
fn a_tail_prints_lines_until_the_machine_is_gone() {
    let directory = tempdir().expect("a temporary directory");
    let console = directory.path().join("uid/virt-serial0");
    let log = directory.path().join("uid/virt-serial0-log");
    let mut tail = tool("virt-tail");
    tail.arg("--logfile")
        .arg(&log)
        .args(["--of-tomorrow", "--v=3"]);
    let mut child = tail.spawn().expect("podvisor");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().map(|line| line.expect("text"));

    fs::create_dir(directory.path().join("uid")).expect("ours");
    fs::write(&console, "").expect("ours");
    let mut file = File::create(&log).expect("ours");
    writeln!(file, "first").expect("ours");
    assert_eq!(next().as_deref(), Some("first"));
    write!(file, "sec").expect("ours");
    writeln!(file, "ond").expect("ours");
    assert_eq!(next().as_deref(), Some("second"));
    fs::remove_file(&log).expect("ours");
    fs::write(&log, "third\nlogin: ").expect("ours");
    assert_eq!(next().as_deref(), Some("third"));
    fs::remove_file(&console).expect("ours");
    assert_eq!(next().as_deref(), Some("login: "), "what had no end");
    assert_eq!(next(), None);
    assert_eq!(status(&mut child), 0);

    // Process 1 of its container has to hear SIGTERM.
    let mut child = tool("virt-tail")
        .arg("--logfile")
        .arg(&log)
        .spawn()
        .expect("podvisor");
    wait_until("it waits for signals", || has_blocked(&child));
    terminate(&child);
    assert_eq!(status(&mut child), 0);
    assert_eq!(run(tool("virt-tail")).0, 2);
}

/// Without a launcher; with one they are tried in tests/vm/tools.rs.
#[test]
fn probes_and_freezers_say_that_nobody_listens() {
    let mut probe = tool("virt-probe");
    probe.args([
        "--socket",
        "/nowhere/sock",
        "--domainName",
        "ns_vm",
        "--timeoutSeconds",
        "1",
    ]);
    probe.args(["--command", "/bin/true", "--", "-x"]);
    let (status, output, error) = run(probe);
    assert_eq!((status, output.as_str()), (1, ""));
    assert!(error.contains("No such file"), "{error}");
    let mut freezer = tool("virt-freezer");
    freezer.args(["--freeze", "--name", "vm", "--namespace", "ns"]);
    assert_eq!(run(freezer).0, 1);
    let mut freezer = tool("virt-freezer");
    freezer.args(["--name", "vm", "--namespace", "ns"]);
    assert_eq!(run(freezer).0, 2);
}
