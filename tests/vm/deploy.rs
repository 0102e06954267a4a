//! The image of `make image` and the manifests of `deploy/`, run by podman.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use podvisor_tests::image::{self, MIB};
use podvisor_tests::podman::Podman;
use podvisor_tests::{PATIENCE, guest, host};
use rustix::net::sockopt::socket_peercred;
use tempfile::TempDir;

/// User and group of KubeVirt's containers.
const KUBEVIRT: u32 = 107;

/// The image's name in the manifests, and that of the other pod's.
pub const IMAGE: &str = "registry.example/podvisor:0.1.0";
const BUSYBOX: &str = "docker.io/library/busybox:stable";

/// Held by a test from before it has the image to after it has removed it, which takes the containers along that use it:
/// all tests build the same one, which podman knows by what is in it.
pub static IMAGES: Mutex<()> = Mutex::new(());

/// A directory of the test's own, in small letters alone: podman makes an image's name of its path.
pub fn directory(role: &str) -> TempDir {
    let mut directory = tempfile::Builder::new();
    let prefix = format!("pv-{}-{role}", std::process::id());
    let made = directory.prefix(&prefix).rand_bytes(0).tempdir();
    made.expect("a temporary directory")
}

/// Builds the image in a directory, without a container engine.
fn build(dir: &Path) -> PathBuf {
    let script = guest::repository().join("deploy/image.sh");
    let podvisor = format!("PODVISOR={}", guest::podvisor().display());
    let (script, directory) = (script.to_string_lossy(), dir.to_string_lossy());
    host("env", &[&podvisor, &script, &directory]);
    dir.join("oci")
}

/// Podman with the images that the manifests name, which are removed in the end. [`IMAGES`] is held.
pub fn with_images(dir: &Path) -> Podman {
    let oci = build(&dir.join("image"));
    let mut podman = Podman::new(dir);
    for name in [IMAGE, BUSYBOX] {
        podman.in_the_end(&["rmi", "--force", name]);
    }
    let id = podman.run(&["pull", "--quiet", &format!("oci:{}", oci.display())]);
    podman.in_the_end(&["rmi", "--force", &id]);
    podman.run(&["tag", &id, IMAGE]);
    import_busybox(&podman, dir);
    podman
}

/// Waits for what another process does.
#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The same binary gives the same image, with which a container disk gets to virt-handler: the launcher's image
/// gives the program, the disk's image has nothing but the disk.
#[test]
fn the_image_serves_container_disks_by_itself() {
    let _images = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = directory("image");
    let dir = dir.path();
    let oci = build(&dir.join("image"));
    build(&dir.join("again"));
    let sums = |name: &str| fs::read_to_string(dir.join(name).join("SHA256SUMS")).expect("sums");
    assert_eq!(sums("image"), sums("again"));
    host(
        "sh",
        &[
            "-c",
            "cd \"$0\" && sha256sum --check --quiet SHA256SUMS",
            &dir.join("image").to_string_lossy(),
        ],
    );
    let bom = fs::read(dir.join("image/podvisor.cdx.json")).expect("a bill of materials");
    let bom: serde_json::Value = serde_json::from_slice(&bom).expect("JSON");
    let parts = bom["components"].as_array().expect("components");
    assert!(
        parts.iter().any(|part| part["name"] == "kvm-ioctls"),
        "{bom}"
    );

    let mut podman = Podman::new(dir);
    let tag = format!("localhost/pv-{}:test", std::process::id());
    let id = podman.run(&["pull", "--quiet", &format!("oci:{}", oci.display())]);
    podman.run(&["tag", &id, &tag]);
    podman.in_the_end(&["rmi", "--force", &id]);
    let bin = dir.join("bin");
    let sockets = dir.join("sockets");
    for directory in [&bin, &sockets] {
        fs::create_dir(directory).expect("ours");
        chown(directory, Some(KUBEVIRT), Some(KUBEVIRT)).expect("root may give files away");
    }
    let unprivileged = [
        "run",
        "--rm",
        "--user",
        "107",
        "--cap-drop",
        "ALL",
        "--network",
        "none",
    ];
    let run = |more: &[&str]| podman.run(&[&unprivileged[..], more].concat());
    let volume = format!("{}:/init/usr/bin", bin.display());
    // The init container.
    let words = [
        "--preserve=all",
        "/usr/bin/container-disk",
        "/init/usr/bin/container-disk",
    ];
    run(&[
        &["--volume", &volume, "--entrypoint", "/usr/bin/cp", &tag],
        &words[..],
    ]
    .concat());
    let version = ["--read-only", &tag, "--version"];
    assert!(run(&version).starts_with("podvisor "));
    // Other pods that KubeVirt makes of it.
    assert_eq!(
        run(&[
            "--entrypoint",
            "/bin/bash",
            &tag,
            "-c",
            "echo",
            "bound PVCs"
        ]),
        ""
    );
    for (name, said) in [("virt-tail", "--logfile"), ("virt-probe", "--domainName")] {
        let help = run(&["--entrypoint", name, &tag, "--help"]);
        assert!(help.contains(said), "{help}");
    }

    // The container of the disk.
    let root = dir.join("root");
    for part in [
        "dev", "proc", "sys", "run", "disk", "etc", "usr/bin", "sockets",
    ] {
        fs::create_dir_all(root.join(part)).expect("ours");
    }
    fs::write(root.join("disk/disk.img"), "the disk").expect("ours");
    let (bin, volume) = (
        format!("{}:/usr/bin", bin.display()),
        format!("{}:/sockets", sockets.display()),
    );
    let mounts = ["--volume", &bin, "--volume", &volume];
    let program = [
        "--rootfs",
        &root.to_string_lossy(),
        "/usr/bin/container-disk",
    ]
    .map(str::to_owned);
    let program = program.each_ref().map(|word| &**word);
    run(&[&mounts[..], &program, &["--no-op"]].concat());
    let name = format!("pv-{}-disk", std::process::id());
    podman.in_the_end(&["rm", "--force", "--time", "0", "--ignore", &name]);
    let mut words = vec!["run", "--detach", "--name", &name];
    words.extend(&unprivileged[2..]);
    words.extend(mounts.iter().chain(&program));
    podman.run(&[&words[..], &["--copy-path", "/sockets/disk_0"]].concat());

    // Virt-handler: who listens has the disk in its root.
    let socket = sockets.join("disk_0.sock");
    wait_until("it listens", || UnixStream::connect(&socket).is_ok());
    let stream = UnixStream::connect(&socket).expect("it listens");
    let pid = socket_peercred(&stream).expect("a peer").pid;
    let disk = format!("/proc/{}/root/disk/disk.img", pid.as_raw_nonzero());
    assert_eq!(fs::read(disk).expect("the disk"), b"the disk");
    // The monitor, at the end of the machine.
    fs::remove_file(&socket).expect("root may");
    assert_eq!(podman.run(&["wait", &name]), "0");
}

/// `deploy/plain/pod.yaml` as it is, but for a guest that needs no disk to boot, and the addresses that a cluster
/// would know by name.
#[test]
fn a_plain_pod_is_reached_by_another() {
    let _images = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = directory("plain");
    let dir = dir.path();
    let mut podman = with_images(dir);
    let manifest = fs::read_to_string(guest::repository().join("deploy/plain/pod.yaml"));
    let manifest = manifest.expect("a manifest");
    let documents: Vec<&str> = manifest.split("\n---\n").collect();
    let [vmi, claim, machine, _service, client] = documents[..] else {
        panic!("other objects than expected: {manifest}");
    };
    podman.in_the_end(&["volume", "rm", "--force", "demo-root"]);
    podman.in_the_end(&["pod", "rm", "--force", "--time", "0", "--ignore", "demo"]);
    podman.in_the_end(&["pod", "rm", "--force", "--time", "0", "--ignore", "client"]);
    let play = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).expect("ours");
        podman.run(&["kube", "play", &path.to_string_lossy()])
    };
    play("claim.yaml", claim);
    let volume = podman.run(&[
        "volume",
        "inspect",
        "--format",
        "{{.Mountpoint}}",
        "demo-root",
    ]);
    image::zeros(Path::new(&volume), "disk.img", MIB);

    play(
        "machine.yaml",
        &format!("{vmi}\n---\n{}", with_guest(machine)),
    );
    let infra = podman.run(&[
        "pod",
        "inspect",
        "--format",
        "{{.InfraContainerID}}",
        "demo",
    ]);
    let address = network(&podman, &infra, "IPAddress");
    let gateway = network(&podman, &infra, "Gateway");
    let client = client.replace("value: demo\n", &format!("value: {address}\n"));
    play(
        "client.yaml",
        &client.replace("value: \"22\"", "value: \"7000\""),
    );
    let log = || podman.log("demo-compute");
    let status = wait(&podman, "client-client", &log);
    let (said, log) = (podman.log("client-client"), log());
    assert_eq!(status, "0", "{said}\n{log}");
    // The guest tells whom it sees: neither the gateway nor its own pod stands between.
    let seen: Option<IpAddr> = said.split(' ').next().and_then(|word| word.parse().ok());
    let seen = seen.unwrap_or_else(|| panic!("no address in {said}\n{log}"));
    assert!(![gateway, address].contains(&seen.to_string()), "{said}");
}

/// Waits for a container's end: its status. Podman takes a good part of a processor, so it is not asked often.
#[track_caller]
pub fn wait(podman: &Podman, container: &str, log: &dyn Fn() -> String) -> String {
    let deadline = Instant::now() + PATIENCE;
    let inspect = |what: &str| podman.run(&["inspect", "--format", what, container]);
    while inspect("{{.State.Status}}") != "exited" {
        assert!(Instant::now() < deadline, "no answer: {}", log());
        std::thread::sleep(Duration::from_secs(1));
    }
    inspect("{{.State.ExitCode}}")
}

/// What podman's network gave a container.
#[track_caller]
fn network(podman: &Podman, container: &str, what: &str) -> String {
    let format = format!("{{{{range .NetworkSettings.Networks}}}}{{{{.{what}}}}}{{{{end}}}}");
    let found = podman.run(&["inspect", "--format", &format, container]);
    assert!(found.parse::<IpAddr>().is_ok(), "{what}: {found:?}");
    found
}

/// The pod with the test's Linux from the host in place of a disk that boots.
fn with_guest(pod: &str) -> String {
    let (kernel, initrd) = (guest::vmlinux(), guest::initrd());
    let folder = kernel.parent().expect("a directory").display();
    let cmdline = guest::linux_cmdline("netcheck ipv6.disable=0");
    let options = format!(
        "--kernel, /guest/{}, --initrd, /guest/{}, --cmdline, \"{cmdline}\"",
        kernel.file_name().expect("a name").display(),
        initrd.file_name().expect("a name").display(),
    );
    let edit = |text: String, old: &str, new: &str| {
        assert_eq!(text.matches(old).count(), 1, "{old}");
        text.replace(old, new)
    };
    let text = edit(
        pod.to_owned(),
        "vmi.yaml]",
        &format!("vmi.yaml, {options}]"),
    );
    let mount = "      volumeMounts:\n        - {name: guest, mountPath: /guest}\n";
    let text = edit(text, "      volumeMounts:\n", mount);
    let volume = format!("\n  volumes:\n    - {{name: guest, hostPath: {{path: {folder}}}}}\n");
    edit(text, "\n  volumes:\n", &volume)
}

/// Debian's, under the name of the manifest's.
fn import_busybox(podman: &Podman, dir: &Path) {
    let root = dir.join("busybox");
    for part in ["bin", "dev", "proc", "sys", "run", "etc", "tmp"] {
        fs::create_dir_all(root.join(part)).expect("ours");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is there");
    let programs = "sh nc grep sleep wget sha256sum mv mkdir";
    for name in programs.split(' ') {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("ours");
    }
    podman.import(&root, &["--change", "ENV=PATH=/bin"], BUSYBOX);
}
