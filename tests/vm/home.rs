//! A disk image without a VMI, as on a laptop.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use podvisor_tests::PATIENCE;
use podvisor_tests::netns::{DNS, POD_ADDRESS, PodNetwork};
use podvisor_tests::run::{Run, Slot, ctl};
use podvisor_tests::vmi::Vmi;
use podvisor_tests::{guest, host, image};
use rustix::process::Signal;
use serde_json::Value;

use crate::bootdisk::{extlinux, payload_disk};

/// In an unpacked container disk, by a user without any capability: its own kernel boots, a port of the host is one of
/// the guest's and no other is let in, and the image stays as it was.
#[test]
fn a_disk_image_runs_without_a_vmi() {
    let network = PodNetwork::new();
    let run = Run::with_arguments(["run"]);
    let unpacked = run.dir().join("golden");
    fs::create_dir_all(unpacked.join("disk")).expect("a directory");
    let disk = unpacked.join("disk/disk.img");
    let made = payload_disk(&run.dir(), &extlinux("ticker secs=100000"), &[]);
    fs::rename(made, &disk).expect("moved");
    let before = image::read(&disk);
    let run = run.arg(&unpacked).arg("--memory=64Mi");
    let run = run.arg("--publish=7001:7000").arg("--user=joe");
    let mut guest = run.within(network.pod.powerless()).start();
    guest.wait_for("TICK");
    let devices = guest.control().stats()["devices"].take();
    for name in ["root", "seed", "default"] {
        assert!(devices[name].is_object(), "{name}: {devices}");
    }
    let connect = |port| {
        network
            .gateway
            .enter(|| TcpStream::connect((POD_ADDRESS, port)))
    };
    connect(7001).expect("the port is let in");
    connect(7000).expect_err("the guest's port is not the host's");
    guest.control().tell("stop");
    guest.exits_with(4);
    assert!(image::read(&disk) == before, "the image is not written to");
}

/// The five commands of the page for a first run.
fn commands_of_page() -> Vec<String> {
    let page = guest::repository().join("docs/quick-start.md");
    let page = fs::read_to_string(page).expect("the page");
    let block = page.split("```").nth(1).expect("its commands");
    let commands = block.lines().filter_map(|line| line.strip_prefix("$ "));
    let commands = commands.map(|line| line.split_once('#').map_or(line, |(command, _)| command));
    commands.map(|command| command.trim().to_owned()).collect()
}

/// They do what the page says, with the test Linux and an SSH server on a disk of ours in place of Debian's, by a user without
/// any capability, on a computer whose name server listens at its loopback. The machine of the page is larger than one that is
/// interpreted should be.
#[test]
fn a_first_run_is_as_the_page_says() {
    let _slot = Slot::take();
    let network = PodNetwork::new();
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let cmdline = format!("mem=128M maxcpus=1 {}", guest::linux_cmdline("ssh"));
    let initrd = guest::initrd_with("/usr/sbin/dropbear", directory.path());
    let made = image::linux(directory.path(), "made.img", &cmdline, &initrd, &[]);
    let [made, disk] = [made, at("debian-12.qcow2")].map(|path| path.display().to_string());
    host("qemu-img", &["convert", "-O", "qcow2", &made, &disk]);
    symlink(guest::podvisor(), at("podvisor")).expect("linked");
    let path = std::env::var("PATH").expect("a path");
    let path = format!("{}:{path}", directory.path().display());
    let mut wrapper = network.pod.powerless();
    let at_home = wrapper.iter().position(|word| word == "setpriv");
    let at_home = at_home.expect("it is there");
    wrapper.splice(at_home..at_home, own_name_server(directory.path()));
    let run = |command: &str, input: &str| {
        let mut shell = Command::new(&wrapper[0]);
        shell.args(&wrapper[1..]).args(["sh", "-c", command]);
        shell.current_dir(directory.path()).env("PATH", &path);
        shell
            .env("XDG_STATE_HOME", at("state"))
            .env("XDG_DATA_HOME", at("data"));
        output_of(shell, input)
    };
    let stop = Stop(|| drop(run("podvisor ctl stop", "")));
    let commands = commands_of_page();
    let [check, inspect, start, ssh, press] = commands.as_slice() else {
        panic!("{commands:?}");
    };
    let checked = String::from_utf8(run(check, "").stdout).expect("text");
    assert!(
        checked
            .lines()
            .any(|line| line.starts_with("ok       kvm ")),
        "{checked}"
    );
    let does = |command: &str| {
        let output = run(command, "");
        assert!(output.status.success(), "{command}: {output:?}");
    };
    does(inspect);
    does(start);
    let entered = run(ssh, "echo \"$USER here\"; exit 7\n");
    let console = fs::read_to_string(at("state/podvisor/debian-12.console"));
    assert!(
        entered.status.code() == Some(7) && entered.stdout == b"me here\n",
        "{entered:?}\n{console:?}"
    );
    assert!(
        console.is_ok_and(|console| console.contains(&format!("RESULT dns={DNS}"))),
        "its name server is the one that the computer's asks"
    );
    does(press);
    // It ends by the guest's hand.
    let ended = run("podvisor ctl events | tail -n 1", "");
    let reason = String::from_utf8_lossy(&ended.stdout);
    let gone = run("podvisor ctl status", "").status.code() == Some(5);
    assert!(gone || reason.contains("\"exitStatus\":0"), "{ended:?}");
    drop(stop);
}

/// Words that run a program where the resolver is systemd's, which asks another.
fn own_name_server(directory: &Path) -> [String; 4] {
    let file = |name: &str, server: &str| {
        let path = directory.join(name);
        fs::write(&path, format!("nameserver {server}\n")).expect("written");
    };
    file("stub.conf", "127.0.0.53");
    file("resolv.conf", DNS);
    let script = "mkdir -p /run/systemd/resolve; mount --bind \"$0\" /run/systemd/resolve; \
                  mount --bind \"$0/stub.conf\" /etc/resolv.conf; exec \"$@\"";
    let directory = directory.display().to_string();
    [
        "sh".to_owned(),
        "-ec".to_owned(),
        script.to_owned(),
        directory,
    ]
}

/// What a program says that is given this.
#[track_caller]
fn output_of(mut command: Command, input: &str) -> Output {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pipes.stderr(Stdio::piped()).spawn().expect("it can be run");
    let mut stdin = child.stdin.take().expect("a pipe");
    // It may have ended by then, and says why.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it can be waited for")
}

/// Ends a machine that runs by itself, whatever becomes of the test.
struct Stop<F: FnMut()>(F);

impl<F: FnMut()> Drop for Stop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// `podvisor` with these words, which keeps what it keeps in `directory`.
fn at_home(directory: &Path, words: &[&OsStr]) -> Output {
    let mut podvisor = Command::new(guest::podvisor());
    podvisor
        .args(words)
        .env("XDG_STATE_HOME", directory.join("state"));
    podvisor.env("XDG_DATA_HOME", directory.join("data"));
    podvisor
        .stdin(Stdio::null())
        .output()
        .expect("it can be run")
}

/// A run that is left to itself returns when its machine runs, or with what went wrong; what it says is in files, which are
/// kept while it runs and can be removed afterwards. Its disk has the size asked for, and its seed podvisor's own key.
#[test]
fn a_machine_runs_by_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let name = format!("alone-{}", std::process::id());
    let disk = payload_disk(directory, &extlinux("ticker secs=100000"), &[]);
    let run = |disk: &Path| {
        let words = [
            "run",
            "--detach",
            "--share-nothing",
            "--memory=64Mi",
            "--size=3Gi",
            "--name",
            &name,
        ];
        let words: Vec<_> = words
            .iter()
            .map(OsStr::new)
            .chain([disk.as_os_str()])
            .collect();
        at_home(directory, &words)
    };
    let stop = Stop(|| drop(ctl(&["--vm", &name, "stop"])));
    let started = run(&disk);
    assert!(started.status.success(), "{started:?}");
    let paused = ctl(&["--vm", &name, "pause"]);
    assert!(paused.status.success(), "{paused:?}");
    let second = run(&disk);
    assert_eq!(second.status.code(), Some(5), "{second:?}");
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("runs"),
        "{second:?}"
    );

    let cleanup = |delete: &[&str]| {
        let words = ["cleanup", "-o", "json"].iter().chain(delete);
        let words: Vec<_> = words.map(OsStr::new).collect();
        let output = at_home(directory, &words);
        let kept: Vec<Value> = serde_json::from_slice(&output.stdout).expect("a list");
        // Other tests' machines have sockets, too, and keep the key in use.
        let ours = directory.join("state").to_string_lossy().into_owned();
        let is_ours = |one: &&Value| {
            one["path"]
                .as_str()
                .is_some_and(|path| path.starts_with(&ours))
        };
        let used = |one: &Value| one["inUse"] == true;
        kept.iter().filter(is_ours).map(used).collect::<Vec<_>>()
    };
    // Console and messages.
    assert_eq!(cleanup(&["--delete"]), [true; 2]);
    assert!(directory.join("data/podvisor/ssh_key.pub").exists());
    ctl(&["--vm", &name, "resume"]);
    let console = directory.join(format!("state/podvisor/{name}.console"));
    let deadline = Instant::now() + PATIENCE;
    while !fs::read_to_string(&console)
        .expect("a console")
        .contains("TICK")
    {
        assert!(Instant::now() < deadline, "the guest says nothing");
        std::thread::sleep(Duration::from_millis(50));
    }
    let console_log = || {
        let words = ["ctl", "--vm", &name, "console-log"].map(OsStr::new);
        let output = at_home(directory, &words);
        String::from_utf8_lossy(&output.stdout).contains("TICK")
    };
    assert!(console_log(), "while it runs");
    drop(stop);
    assert!(console_log(), "and when it has ended");

    let empty = image::zeros(directory, "empty.img", image::MIB);
    let failed = run(&empty);
    let reason = String::from_utf8_lossy(&failed.stderr);
    assert!(
        failed.status.code() == Some(2) && reason.contains("image inspect"),
        "{failed:?}"
    );
    assert_eq!(cleanup(&["--delete"]), [false; 2]);
    assert!(cleanup(&[]).is_empty());
}

/// What `new` prints is what `run` runs, and no image that runs is removed; what is no disk is told.
#[test]
fn a_vmi_is_made_for_a_disk() {
    let run = Run::with_arguments(["run"]);
    let disk = run.dir().join("Debian 12.qcow2");
    let path = disk.to_str().expect("UTF-8");
    host("qemu-img", &["create", "-q", "-f", "qcow2", path, "1M"]);
    let mut new = Run::with_arguments(["new"])
        .arg(&disk)
        .arg("--no-network")
        .arg("--memory=64Mi")
        .start_at_once();
    new.exits_with(0);
    let vmi = run.dir().join("vmi.yaml");
    fs::write(&vmi, new.console.text()).expect("written");
    let volume = format!("qcow2:{path}");
    let run = run.arg(&vmi).volume("root", volume.as_ref());
    let mut guest = run.payload("ticker").start();
    guest.wait_for("TICK");
    let devices = guest.control().stats()["devices"].take();
    assert!(devices["root"].is_object() && devices["default"].is_null());
    let images = guest.dir();
    let remove = || {
        let gc = Run::with_arguments(["image", "gc", "--keep=0", "--delete"]);
        let mut gc = gc.arg(&images).start_at_once();
        gc.exits_with(0);
        gc.console.text()
    };
    assert!(remove().contains("in use") && disk.exists());
    guest.signal(Signal::TERM);
    guest.signal(Signal::INT);
    guest.exits_with(4);
    let text = remove();
    assert!(text.contains("removed") && !disk.exists(), "{text}");

    for (words, reason) in [
        (&["new", "/dev/null"][..], "no disk image"),
        (&["run", "-", "--cpus=2"], "for a disk image"),
    ] {
        let mut refused = Run::with_arguments([words[0]]);
        for word in &words[1..] {
            refused = refused.arg(word);
        }
        let mut refused = refused.start_at_once();
        refused.exits_with(2);
        refused.log_has(&[reason]);
    }
}

/// Each machine listens where `ctl` looks for it by its name, as long as it runs.
#[test]
fn machines_are_found_by_name() {
    let names = ["one", "two"].map(|name| format!("{name}-{}", std::process::id()));
    let run = |name: &String| {
        let run = Run::new(&Vmi::new(name).grace_seconds(0));
        let socket = format!("/run/podvisor/{name}.sock").into();
        run.found_at(socket).payload("ticker secs=100000")
    };
    let [mut one, mut two] = [run(&names[0]).start(), run(&names[1]).start_at_once()];
    one.wait_for("TICK");
    two.wait_for("TICK");
    let states = || {
        let listed = ctl(&["list", "-o", "json"]).stdout;
        let listed: Vec<Value> = serde_json::from_slice(&listed).expect("a list");
        let state = |name: &String| listed.iter().find(|one| one["name"] == *name);
        names
            .each_ref()
            .map(|name| state(name).map(|one| one["state"].clone()))
    };
    let [first, second] = &names;
    let paused = ctl(&["--vm", second, "pause"]);
    assert!(paused.status.success(), "{paused:?}");
    assert_eq!(states(), [Some("running".into()), Some("paused".into())]);
    let which = ctl(&["status"]);
    let reason = String::from_utf8_lossy(&which.stderr);
    assert!(
        which.status.code() == Some(2) && reason.contains(&**first),
        "{which:?}"
    );

    // What a kill leaves is nobody's machine.
    let mut watched = Command::new(guest::podvisor())
        .args(["ctl", "--vm", second, "events"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("podvisor can be run");
    let events = watched.stdout.take().expect("a pipe");
    let mut events = BufReader::new(events).lines().map_while(Result::ok);
    let hello = events.next().expect("a greeting");
    assert!(
        hello.contains("hello") && hello.contains("paused"),
        "{hello}"
    );
    assert!(one.kill_both());
    assert_eq!(states(), [None, Some("paused".into())]);
    let gone = ctl(&["--vm", first, "status"]);
    assert_eq!(gone.status.code(), Some(5), "{gone:?}");
    assert!(ctl(&["--vm", second, "stop"]).status.success());
    two.exits_with(4);
    assert_eq!(states(), [None, None]);
    assert!(events.any(|line| line.contains("ended")));
    assert!(watched.wait().expect("it ends").success());
}

/// Starts are timed to the guest's words, beside another program, and the drawing has them all.
#[test]
fn starts_are_timed() {
    let dir = Run::new(&Vmi::new("timed").grace_seconds(0));
    let (vmi, drawing) = (dir.dir().join("vmi.yaml"), dir.dir().join("starts.svg"));
    let mut bench = Command::new(guest::podvisor());
    bench.args([
        "bench-boot",
        "-n",
        "2",
        "-o",
        "json",
        "--until",
        "TICK cpu=0",
    ]);
    bench
        .args(["--compare", "echo TICK cpu=0; sleep 1000", "--plot"])
        .arg(&drawing);
    bench.arg(&vmi).arg("--kernel").arg(guest::payload());
    let output = bench.args(["--cmdline", "ticker secs=100000"]).output();
    let output = output.expect("podvisor can be run");
    assert!(output.status.success(), "{output:?}");
    let series: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |one: &Value| format!("{} {}", one["program"], one["step"]).replace(['"', '\\'], "");
    let names: Vec<_> = series.iter().map(text).collect();
    let expected = [
        "podvisor first instruction",
        "podvisor TICK cpu=0",
        "echo TICK cpu=0; sleep 1000 TICK cpu=0",
    ];
    assert_eq!(names, expected);
    let medians: Vec<_> = series.iter().map(|one| one["medianMs"].as_f64()).collect();
    assert!(
        medians[0] > Some(0.0) && medians[0] <= medians[1],
        "{output:?}"
    );
    assert_eq!(series[0]["runsMs"].as_array().map(Vec::len), Some(2));
    let drawing = fs::read_to_string(&drawing).expect("a drawing");
    assert_eq!(drawing.matches("<circle").count(), 6);
}
