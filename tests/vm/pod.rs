//! podvisor as the entrypoint of a real container: process 1, no other program, a read-only root.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::Command;

use podvisor_tests::image::{self, MIB};
use podvisor_tests::netns::PodNetwork;
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::{Disk, Vmi};
use podvisor_tests::{guest, host};
use rustix::process::Signal;

/// User and group of KubeVirt's containers.
const KUBEVIRT: u32 = 107;

/// Where a container finds the volume `root`, in the way of KubeVirt.
const VOLUME: &str = "/run/kubevirt-private/vmi-disks/root";

/// What podman does not know of these machines, see shared `pods-on-our-machines.md`.
const CONFIGURATION: &str = r#"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"#;

/// A container; removed when dropped.
struct Container {
    name: String,
    guest: Guest,
}

impl Container {
    /// Starts `run` as the entrypoint. Its files have the paths that they have on the host.
    fn start(role: &str, run: Run, options: &[&str]) -> Self {
        let name = format!("pv-{}-{role}", std::process::id());
        let dir = run.dir();
        let root = dir.join("root");
        for part in ["dev", "proc", "sys", "run", "tmp", "etc", "var"] {
            fs::create_dir_all(root.join(part)).expect("the root can be made");
        }
        symlink("../run", root.join("var/run")).expect("the root can be made");
        let configuration = dir.join("containers.conf");
        fs::write(&configuration, CONFIGURATION).expect("the configuration can be written");

        let mut words: Vec<String> = vec![
            "env".into(),
            format!("CONTAINERS_CONF={}", configuration.display()),
        ];
        words.extend(["podman", "run", "--rm", "--name", &name].map(str::to_owned));
        words.extend(["--read-only", "--tmpfs", "/run", "--cap-drop", "ALL"].map(str::to_owned));
        words.extend(["--security-opt", "no-new-privileges"].map(str::to_owned));
        for path in [&dir, &guest::podvisor(), &guest::payload()] {
            words.extend(["--volume".into(), format!("{0}:{0}", path.display())]);
        }
        words.extend(options.iter().map(|word| word.to_string()));
        words.extend(["--rootfs".into(), root.to_string_lossy().into_owned()]);
        let guest = run.within(words).start();
        Self { name, guest }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let remove = ["rm", "--force", "--time", "0", "--ignore", &self.name];
        // Left behind at worst; a panic here would hide the one that may be under way.
        let _ = Command::new("podman").args(remove).output();
    }
}

/// With the right to change the network of its pod, the volume where KubeVirt puts it, and a peer.
#[test]
fn entrypoint_with_disk_and_network() {
    let network = PodNetwork::new();
    let before = network.pod.snapshot();
    let vmi = Vmi::new("pod").disk(Disk::new("root")).network().rng();
    let run = Run::new(&vmi).payload("sane");
    let volume = volume(&run.dir());
    let namespace = format!("ns:{}", network.pod_path().display());
    let options = [
        "--network",
        &namespace,
        "--cap-add",
        "NET_ADMIN",
        "--device",
        "/dev/kvm",
    ];
    let more = ["--device", "/dev/net/tun", "--volume", &volume];
    let mut container = Container::start("root", run, &[&options[..], &more].concat());
    container
        .guest
        .wait_for("RESULT sane=ok devices=3 failed=0");
    container.guest.exits_with(0);
    network.pod.assert_is(&before);
}

/// As KubeVirt runs its containers: without any capability, as a user who owns the device nodes.
/// The signal that ends a pod reaches process 1.
#[test]
fn entrypoint_without_privileges() {
    let vmi = Vmi::new("user")
        .disk(Disk::new("root"))
        .rng()
        .grace_seconds(1);
    let run = Run::new(&vmi).payload("ticker secs=100000");
    let dir = run.dir();
    let volume = volume(&dir);
    let kvm = dir.join("kvm");
    host(
        "mknod",
        &["-m", "600", &kvm.to_string_lossy(), "c", "10", "232"],
    );
    for path in [&dir, &kvm, &dir.join("disk.img")] {
        chown(path, Some(KUBEVIRT), Some(KUBEVIRT)).expect("root may give files away");
    }
    let user = format!("{KUBEVIRT}:{KUBEVIRT}");
    let device = format!("{}:/dev/kvm", kvm.display());
    let options = [
        "--network",
        "none",
        "--user",
        &user,
        "--device",
        &device,
        "--volume",
        &volume,
    ];
    let mut container = Container::start("user", run, &options);
    container.guest.wait_for("TICK");
    container.guest.control().stats();
    container.guest.signal(Signal::TERM);
    container.guest.exits_with(4);
    container.guest.log_has(&["did not power off"]);
}

/// Makes `disk.img` in `dir`; the option that mounts the directory as the volume `root`.
fn volume(dir: &Path) -> String {
    image::zeros(dir, "disk.img", MIB);
    format!("{}:{VOLUME}", dir.display())
}
