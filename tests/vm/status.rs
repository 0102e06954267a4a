//! Exit statuses 2 and 5 with their paragraph: what, why, and the way out. (0, 1, 3 and 4 are
//! where guests end.)

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use podvisor_tests::image::{self, MIB};
use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Disk, Vmi};
use podvisor_tests::{guest, host};

#[test]
fn usage() {
    for args in [
        ["run", "--no-such-flag"],
        ["no-such-command", ""],
        ["run", "--console=tv"],
    ] {
        let mut podvisor = Run::with_arguments(args).start_at_once();
        podvisor.exits_with(2);
        podvisor.log_has(&["error:"]);
    }
}

#[test]
fn no_vmi() {
    let mut podvisor = Run::with_arguments(["run"]).start_at_once();
    podvisor.exits_with(2);
    podvisor.log_has(&["No VirtualMachineInstance was given", "STANDALONE_VMI"]);
}

#[test]
fn a_vmi_that_cannot_be_honoured() {
    let vmi = Vmi::new("refused")
        .memory("1")
        .disk(Disk::new("root").serial("x").cache("unsafe"));
    let mut podvisor = Run::new(&vmi)
        .payload("hello")
        .arg("--volume")
        .arg("other=/x")
        .start_at_once();
    podvisor.exits_with(2);
    podvisor.log_has(&[
        "cannot be honoured",
        "spec.domain.memory.guest",
        "disks[0].cache",
    ]);
}

#[test]
fn a_required_feature_that_the_host_lacks() {
    // No x86 processor has both vendors' extensions.
    let vmi = Vmi::new("chimera")
        .feature("vmx", "require")
        .feature("3dnow", "require");
    let mut podvisor = Run::new(&vmi).payload("hello").start_at_once();
    podvisor.exits_with(2);
    podvisor.log_has(&["The machine cannot be built", "is required, but the host"]);
}

/// A machine that starts hides what its VMI disables. Where guests would see the processor's own bit,
/// it does not start. Which of both depends on the processor's maker, the bit and KVM.
#[test]
fn a_feature_is_hidden_or_its_policy_refused() {
    for name in ["cx16", "popcnt"] {
        let vmi = Vmi::new("hidden").feature(name, "disable");
        let mut podvisor = Run::new(&vmi).payload("hello").start();
        if podvisor.wait().code() == Some(2) {
            let refusal = format!(
                "CPU feature \"{name}\" cannot have policy disable: this host's KVM shows guests \
                 the host's own bit, which is set"
            );
            podvisor.log_has(&["The machine cannot be built", &refusal]);
        } else {
            podvisor.exits_with(0);
            podvisor.wait_for("PAYLOAD-DONE");
        }
    }
}

/// What runs out is named with the limit to raise, wherever that is noticed.
#[test]
fn limits_on_the_process() {
    for (limit, words) in [
        ("--nofile=8", "limit on open files"),
        ("--nofile=10", "limit on open files"),
        ("--as=100000000", "limits on memory"),
        ("--nproc=3", "limit on processes of a user is 3"),
    ] {
        let run = Run::new(&Vmi::new("limits").memory("128Mi")).payload("hello");
        let mut podvisor = run.within(["prlimit", limit]).start_at_once();
        podvisor.exits_with(5);
        podvisor.log_has(&[words]);
    }
}

/// A control group of its own with room for so many processes, as a pod's is.
struct Pids(PathBuf);

impl Pids {
    fn new(max: u32) -> Self {
        let base = Path::new("/sys/fs/cgroup");
        // The controller's hierarchy is its own in version 1.
        let first = base.join("pids");
        let base = match first.is_dir() {
            true => first.as_path(),
            false => {
                fs::write(base.join("cgroup.subtree_control"), "+pids").expect("pids are counted");
                base
            }
        };
        let group = base.join(format!("podvisor-test-{}", std::process::id()));
        fs::create_dir(&group).expect("a control group");
        let group = Self(group);
        fs::write(group.0.join("pids.max"), max.to_string()).expect("a limit");
        group
    }
}

impl Drop for Pids {
    fn drop(&mut self) {
        // One that has processes stays.
        let _ = fs::remove_dir(&self.0);
    }
}

/// The vm process cannot be forked, its threads cannot be made.
#[test]
fn limits_of_the_control_group() {
    for (max, words) in [
        (1, "pids.max of the pod's control group"),
        (3, "the control group has room for"),
    ] {
        let group = Pids::new(max);
        let join = format!(
            "echo $$ > {}/cgroup.procs; exec \"$0\" \"$@\"",
            group.0.display()
        );
        let run = Run::new(&Vmi::new("pids")).payload("hello");
        let mut podvisor = run.within(["sh", "-ec", &join]).start_at_once();
        podvisor.exits_with(5);
        podvisor.log_has(&[words]);
    }
}

/// More queues than the host has descriptors for are refused before a guest finds devices that do not start.
#[test]
fn a_machine_of_many_queues() {
    let mut vmi = Vmi::new("queues").topology(1, 16, 1).multi_queue();
    for number in 0..30 {
        vmi = vmi.disk(Disk::new(&format!("disk{number}")));
    }
    let mut run = Run::new(&vmi);
    let image = |number| image::zeros(&run.dir(), &format!("disk{number}.img"), MIB);
    let images: Vec<_> = (0..30).map(image).collect();
    for (number, image) in images.iter().enumerate() {
        run = run.volume(&format!("disk{number}"), image);
    }
    let run = run.payload("hello").within(["prlimit", "--nofile=2048"]);
    let mut podvisor = run.start_at_once();
    podvisor.exits_with(5);
    podvisor.log_has(&["spec.domain.devices: 480 queues of 30 devices need", "2048"]);
}

#[test]
fn more_memory_than_the_host_has_is_told() {
    let vmi = Vmi::new("large").memory("1Ti");
    let mut podvisor = Run::new(&vmi).payload("hello").start();
    podvisor.exits_with(0);
    podvisor.log_has(&["the guest has more memory (1048576 MiB) than the host"]);
}

#[test]
fn missing_files() {
    let vmi = Vmi::new("missing").disk(Disk::new("root"));
    let run = Run::new(&vmi).payload("hello");
    let mut podvisor = run
        .volume("root", "/nonexistent/disk.img".as_ref())
        .start_at_once();
    podvisor.exits_with(5);
    podvisor.log_has(&["\"root\"", "/nonexistent/disk.img"]);

    let run = Run::new(&Vmi::new("missing")).kernel("/nonexistent/vmlinux".as_ref());
    let mut podvisor = run.start_at_once();
    podvisor.exits_with(5);
    podvisor.log_has(&["kernel", "/nonexistent/vmlinux", "No such file"]);
}

#[test]
fn a_kernel_that_is_none() {
    let run = Run::new(&Vmi::new("text"));
    let kernel = run.dir().join("vmlinux");
    fs::write(&kernel, "not a kernel\n".repeat(1000)).expect("the file can be written");
    let mut podvisor = run.kernel(&kernel).start_at_once();
    podvisor.exits_with(2);
    podvisor.log_has(&[
        "The machine cannot be built",
        "not an x86-64 ELF file or bzImage",
    ]);
}

#[test]
fn a_ragged_image() {
    let vmi = Vmi::new("ragged").disk(Disk::new("root").block_size(4096));
    let run = Run::new(&vmi);
    let image = image::zeros(&run.dir(), "root.img", MIB + 512);
    let mut podvisor = run.volume("root", &image).payload("hello").start_at_once();
    podvisor.exits_with(2);
    podvisor.log_has(&["disk root has 1049088 bytes, not a multiple of 4096"]);
}

/// A disk of no byte, whatever its image looks like.
#[test]
fn an_empty_image() {
    let run = Run::new(&Vmi::new("empty").disk(Disk::new("root")));
    let image = run.dir().join("root.qcow2");
    host(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", &image.to_string_lossy(), "0"],
    );
    let mut volume = std::ffi::OsString::from("root=qcow2:");
    volume.push(&image);
    let run = run.arg("--volume").arg(volume);
    let mut podvisor = run.payload("hello").start_at_once();
    podvisor.exits_with(2);
    podvisor.log_has(&["The image of disk root is empty"]);
}

/// Where a path cannot be made that a run writes to.
#[test]
fn paths_that_cannot_be_made() {
    for option in ["--console=file:", "--boot-trace=", "--crash-dump="] {
        let run = Run::new(&Vmi::new("paths")).payload("hello");
        let mut podvisor = run
            .arg(format!("{option}/nonexistent/file"))
            .start_at_once();
        podvisor.exits_with(5);
        podvisor.log_has(&["/nonexistent/file", "No such file"]);
    }
}

/// In a mount namespace whose `/dev` is empty.
#[test]
fn no_kvm() {
    let script = "mount -t tmpfs none /dev; exec \"$0\" \"$@\"";
    let run = Run::new(&Vmi::new("nokvm")).payload("hello");
    let mut podvisor = run
        .within(["unshare", "-m", "sh", "-ec", script])
        .start_at_once();
    podvisor.exits_with(5);
    podvisor.log_has(&["Cannot open /dev/kvm", "No such file", "kvm_intel"]);
}

/// The demos end before they begin, in the words of `check-host`.
#[test]
fn a_demo_that_cannot_run_says_what_the_host_lacks() {
    let script = "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; exec \"$0\"";
    for demo in ["demo.sh", "demo-pod.sh"] {
        let path = guest::repository().join("examples").join(demo);
        let output = Command::new("unshare")
            .args(["-m", "sh", "-ec", script])
            .arg(path)
            .env("PODVISOR", guest::podvisor())
            .output()
            .expect("unshare runs");
        assert_eq!(output.status.code(), Some(5), "{demo}: {output:?}");
        assert!(output.stdout.is_empty(), "{demo}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        let words = ["This host cannot run the demo", "MISSING", "/dev/kvm"];
        for word in words {
            assert!(said.contains(word), "{demo}: {said}");
        }
        assert!(!said.contains("spec."), "nothing of the VMI: {said}");
    }
}

/// With a `/dev/kvm` that belongs to somebody else.
#[test]
fn no_permission() {
    let script = "mount -t tmpfs none /dev; mknod -m 600 /dev/kvm c 10 232; \
                  exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" \"$@\"";
    let vmi = format!("STANDALONE_VMI={}", Vmi::new("nobody").to_yaml());
    let run = Run::with_arguments(["run"]).kernel("/proc/self/exe".as_ref());
    let words = ["env", &vmi, "unshare", "-m", "sh", "-ec", script];
    let mut podvisor = run.within(words).start_at_once();
    podvisor.exits_with(5);
    podvisor.log_has(&["Cannot open /dev/kvm", "Permission denied", "kvm"]);
}

#[test]
fn no_pod_interface() {
    let run = Run::new(&Vmi::new("nonet").network()).payload("hello");
    let words = ["unshare", "-n", "--"];
    let mut podvisor = run
        .arg("--pod-interface")
        .arg("pv-none0")
        .within(words)
        .start_at_once();
    podvisor.exits_with(5);
    podvisor.log_has(&["no network interface pv-none0"]);
}

/// Each line of a JSON log is an object, down to the last, and where there is nothing but what went wrong.
#[test]
fn json_log() {
    let vmi = || Vmi::new("json").disk(Disk::new("root"));
    let run = |vmi: &Vmi| Run::new(vmi).arg("--log-format").arg("json");
    let ran = run(&vmi()).payload("sane");
    let image = image::zeros(&ran.dir(), "root.img", MIB);
    let mut ran = ran.volume("root", &image).start();
    ran.exits_with(0);
    let mut fails = run(&vmi()).payload("sane").start_at_once();
    fails.exits_with(5);
    let mut crashes = run(&Vmi::new("json")).payload("crash how=panic").start();
    crashes.exits_with(3);
    crashes.log_has(&["\"level\":\"ERROR\"", "the guest kernel panicked"]);
    for guest in [&ran, &fails, &crashes] {
        assert!(!guest.log.lines().is_empty());
        for line in guest.log.lines() {
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(&line.text);
            let is_object = parsed.is_ok_and(|value| value.is_object());
            assert!(is_object, "{:?}", line.text);
        }
    }
}
