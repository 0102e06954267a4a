//! podvisor as the entrypoint of a real container: process 1, no other program, a read-only root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use podvisor_tests::image::{self, MIB};
use podvisor_tests::netns::PodNetwork;
use podvisor_tests::podman::{CONFIGURATION, Podman};
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::{Disk, Nic, Vmi};
use podvisor_tests::{guest, host};
use rustix::process::Signal;
use serde_json::Value;

/// User and group of KubeVirt's containers.
const KUBEVIRT: u32 = 107;

/// Where a container finds the volume `root`, in the way of KubeVirt.
const VOLUME: &str = "/run/kubevirt-private/vmi-disks/root";

/// A container; removed when dropped.
struct Container {
    name: String,
    guest: Guest,
}

impl Container {
    /// Starts `run` as the entrypoint. Its files have the paths that they have on the host.
    fn start(role: &str, run: Run, options: &[&str]) -> Self {
        Self::start_as(0, role, run, options)
    }

    /// The same where the container's root is `root_id` on the node.
    fn start_as(root_id: u32, role: &str, run: Run, options: &[&str]) -> Self {
        let name = format!("pv-{}-{role}", std::process::id());
        let dir = run.dir();
        let root = dir.join("root");
        for part in ["dev", "proc", "sys", "run", "tmp", "etc", "var"] {
            fs::create_dir_all(root.join(part)).expect("the root can be made");
        }
        symlink("../run", root.join("var/run")).expect("the root can be made");
        // Mount points are made by the container's root.
        let owner = format!("{root_id}:{root_id}");
        host("chown", &["-R", &owner, &root.to_string_lossy()]);
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).expect("ours");
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
    // Podman's own profile has no io_uring either.
    assert_eq!(run_unprivileged("user", KUBEVIRT, &[]), "sync");
    let unconfined = ["--security-opt", "seccomp=unconfined"];
    assert_eq!(run_unprivileged("free", KUBEVIRT, &unconfined), "ioUring");
}

/// The node's agent has made the TAP for 107: a user without any right in a container has it in the guest.
/// What a guest then has of it is seen in `adopted.rs`.
#[test]
fn entrypoint_with_a_tap_of_the_node() {
    let network = PodNetwork::new();
    network.add_tap(KUBEVIRT);
    network.give_interface_away("02:00:00:00:00:07");
    let run = Run::new(&Vmi::new("tap").nic(Nic::new("bridge"))).payload("sane");
    chown(run.dir(), Some(KUBEVIRT), Some(KUBEVIRT)).expect("root may give files away");
    let devices = [
        Device::new("tap-kvm", KUBEVIRT),
        Device::tun("tap-tun", KUBEVIRT),
    ];
    let (user, namespace) = (
        format!("{KUBEVIRT}:{KUBEVIRT}"),
        format!("ns:{}", network.pod_path().display()),
    );
    let mut options = vec!["--user", &user, "--network", &namespace];
    let files = devices
        .each_ref()
        .map(|device| (device.path(), device.mount()));
    for (path, mount) in &files {
        options.extend(["--device", path, "--volume", mount]);
    }
    let mut container = Container::start("tap", run, &options);
    let guest = &mut container.guest;
    guest.wait_for("RESULT sane=ok devices=1 failed=0");
    guest.exits_with(0);
    guest.log_has(&["bridge and TAP adopted"]);
}

/// The user is 107 in a user namespace, and nobody on the node.
#[test]
fn entrypoint_in_a_user_namespace() {
    let map = ["--uidmap", "0:200000:65536", "--gidmap", "0:200000:65536"];
    // Podman forgets this in a user namespace.
    let device = ["--device-cgroup-rule", "c 10:232 rw"];
    run_unprivileged(
        "userns",
        200_000 + KUBEVIRT,
        &[map.as_slice(), &device].concat(),
    );
}

/// Profiles of runtimes that refuse more: disks do without io_uring, the jail without namespaces,
/// and on an old one without Landlock.
#[test]
fn entrypoint_under_strict_profiles() {
    for profile in ["without-io-uring", "old-runtime"] {
        let path = guest::repository().join(format!("tests/profiles/{profile}.json"));
        let option = format!("seccomp={}", path.display());
        let options = ["--security-opt", &option];
        let engine = run_unprivileged(profile, KUBEVIRT, &options);
        assert_eq!(engine, "sync", "{profile}");
    }
}

/// Runs a machine in a container as user 107, who is `owner` on the node; the engine of its disk.
fn run_unprivileged(role: &str, owner: u32, more: &[&str]) -> String {
    let vmi = Vmi::new("user")
        .disk(Disk::new("root"))
        .rng()
        .grace_seconds(1);
    let run = Run::new(&vmi).payload("ticker secs=100000");
    let dir = run.dir();
    let volume = volume(&dir);
    let device = Device::new(role, owner);
    for path in [&dir, &dir.join("disk.img")] {
        chown(path, Some(owner), Some(owner)).expect("root may give files away");
    }
    let user = format!("{KUBEVIRT}:{KUBEVIRT}");
    let options = ["--network", "none", "--user", &user];
    let (mount, path) = (device.mount(), device.path());
    let files = ["--device", &path, "--volume", &mount, "--volume", &volume];
    let options = [&options[..], &files, more].concat();
    let mut container = Container::start_as(owner - KUBEVIRT, role, run, &options);
    container.guest.wait_for("TICK");
    let stats = container.guest.control().stats();
    container.guest.signal(Signal::TERM);
    container.guest.exits_with(4);
    container.guest.log_has(&["did not power off"]);
    let engine = stats["devices"]["root"]["engine"].as_str();
    engine.expect("a disk has an engine").to_owned()
}

/// A Kubernetes Pod with the security context that the `restricted` standard asks for, its disk on
/// a persistent volume claim, played by podman.
#[test]
fn a_pod_with_a_security_context() {
    let name = format!("pv-{}-kube", std::process::id());
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path();
    let pod = Pod::new(&name, dir);
    let log = pod.play();
    assert!(log.contains("PAYLOAD-DONE"), "{log}");
    assert!(log.contains("RESULT sane=ok devices=2 failed=0"), "{log}");
}

/// What `kube play` is to make; removed when dropped.
struct Pod {
    name: String,
    // Its container has it until podman has ended.
    podman: Podman,
    _kvm: Device,
    manifest: PathBuf,
}

impl Pod {
    fn new(name: &str, dir: &Path) -> Self {
        let mut podman = Podman::new(dir);
        let image = format!("localhost/{name}:test");
        podman.in_the_end(&["rmi", "--force", &image]);
        podman.in_the_end(&["volume", "rm", "--force", name]);
        podman.in_the_end(&["pod", "rm", "--force", "--time", "0", name]);
        podman.import(&root(dir), &[], &image);
        assert_eq!(podman.run(&["volume", "create", name]), name);
        let volume = podman.run(&["volume", "inspect", "--format", "{{.Mountpoint}}", name]);
        let volume = Path::new(&volume);
        let image = image::zeros(volume, "disk.img", MIB);
        for path in [volume, &image] {
            chown(path, Some(KUBEVIRT), Some(KUBEVIRT)).expect("root may give files away");
        }
        let kvm = Device::new("kube", KUBEVIRT);
        let vmi = Vmi::new("kube").disk(Disk::new("root")).rng().to_yaml();
        let text = MANIFEST
            .replace("@NAME@", name)
            .replace("@KVM@", &kvm.path())
            .replace("@VMI@", &serde_json::to_string(&vmi).expect("a string"));
        let manifest = dir.join("pod.yaml");
        fs::write(&manifest, text).expect("the manifest can be written");
        Self {
            name: name.to_owned(),
            podman,
            _kvm: kvm,
            manifest,
        }
    }

    /// Plays the manifest to its container's end; what that said.
    fn play(&self) -> String {
        let Self { podman, .. } = self;
        podman.run(&["kube", "play", &self.manifest.to_string_lossy()]);
        let container = format!("{}-compute", self.name);
        let status = podman.run(&["wait", &container]);
        let log = podman.run(&["logs", &container]);
        assert_eq!(status, "0", "{log}");
        log
    }
}

/// What is in an image of two files.
fn root(dir: &Path) -> PathBuf {
    let root = dir.join("image");
    for part in ["dev", "proc", "sys", "run", "tmp", "etc", "var"] {
        fs::create_dir_all(root.join(part)).expect("the image can be made");
    }
    symlink("../run", root.join("var/run")).expect("the image can be made");
    fs::copy(guest::podvisor(), root.join("podvisor")).expect("the image can be made");
    fs::copy(guest::payload(), root.join("payload.elf")).expect("the image can be made");
    root
}

const MANIFEST: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: @NAME@
spec:
  restartPolicy: Never
  containers:
  - name: compute
    image: localhost/@NAME@:test
    imagePullPolicy: Never
    command: [/podvisor, run, --kernel, /payload.elf, --cmdline, sane]
    env:
    - {name: STANDALONE_VMI, value: @VMI@}
    securityContext:
      runAsUser: 107
      runAsGroup: 107
      runAsNonRoot: true
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
      seccompProfile: {type: RuntimeDefault}
    volumeMounts:
    - {name: root, mountPath: /run/kubevirt-private/vmi-disks/root}
    - {name: kvm, mountPath: /dev/kvm}
  volumes:
  - name: root
    persistentVolumeClaim: {claimName: @NAME@}
  - name: kvm
    hostPath: {path: @KVM@, type: CharDevice}
"#;

/// What `check-host` finds in a pod without any rights, and outside of it.
#[test]
fn check_host_tells_what_a_container_lacks() {
    let mut outside = Run::with_arguments(["check-host", "--output", "json"]).start_at_once();
    outside.exits_with(0);
    let checks = checks(&outside);
    for name in ["kvm", "tun", "network", "seccomp", "memory", "state"] {
        assert_eq!(checks[name]["state"], "ok", "{name}");
    }

    let run = Run::with_arguments(["check-host", "--output", "json"]);
    let device = Device::new("check", KUBEVIRT);
    let user = format!("{KUBEVIRT}:{KUBEVIRT}");
    let mount = device.mount();
    let path = device.path();
    let files = ["--device", &path, "--volume", &mount];
    let options = [&["--network", "none", "--user", &user], &files[..]].concat();
    let mut container = Container::start("check", run, &options);
    container.guest.exits_with(5);
    let checks = self::checks(&container.guest);
    for (name, state) in [
        ("kvm", "ok"),
        ("seccomp", "ok"),
        ("tun", "lacking"),
        ("network", "lacking"),
    ] {
        assert_eq!(checks[name]["state"], state, "{name}");
    }
    let user = checks["user"]["found"].as_str().unwrap_or_default();
    assert!(user.starts_with("107:107"), "{user}");
}

/// The list on standard output, by name.
fn checks(podvisor: &Guest) -> serde_json::Map<String, Value> {
    let lines = podvisor.console.lines();
    let text: String = lines.iter().map(|line| line.text.as_str()).collect();
    let list: Vec<Value> = serde_json::from_str(&text).expect("a list in JSON");
    let named = list.into_iter();
    named
        .map(|check| (check["name"].as_str().unwrap_or_default().to_owned(), check))
        .collect()
}

/// A `/dev/kvm` or `/dev/net/tun` that belongs to a user, as KubeVirt's node agent makes them; removed
/// when dropped.
struct Device {
    path: PathBuf,
    inside: &'static str,
}

impl Device {
    fn new(role: &str, owner: u32) -> Self {
        Self::make(role, owner, "/dev/kvm", "232")
    }

    fn tun(role: &str, owner: u32) -> Self {
        Self::make(role, owner, "/dev/net/tun", "200")
    }

    fn make(role: &str, owner: u32, inside: &'static str, minor: &str) -> Self {
        let path = PathBuf::from(format!("/dev/pv-{}-{role}", std::process::id()));
        let device = Self { path, inside };
        host("mknod", &["-m", "600", &device.path(), "c", "10", minor]);
        chown(&device.path, Some(owner), Some(owner)).expect("root may give files away");
        device
    }

    fn path(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    /// The value of an option `--volume` that takes it into a container. An option `--device` with
    /// its own path opens the container's cgroup for it, too; with `/dev/kvm` as the path inside, runc
    /// would take the node's own in a user namespace.
    fn mount(&self) -> String {
        format!("{}:{}", self.path(), self.inside)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Left behind at worst.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes `disk.img` in `dir`; the option that mounts the directory as the volume `root`.
fn volume(dir: &Path) -> String {
    image::zeros(dir, "disk.img", MIB);
    format!("{}:{VOLUME}", dir.display())
}
