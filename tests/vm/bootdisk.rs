//! Machines that boot the kernel on their disk: found as boot loaders find it, by a process that can do nothing
//! else, and read again for each reset.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use podvisor_tests::image::{self, MIB};
use podvisor_tests::proc::Process;
use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Disk, Vmi};
use podvisor_tests::{guest, host};

/// Private memory that the process may have once it has read a disk, KiB.
const MEMORY: u64 = 2048;

/// A configuration of extlinux that boots the payload.
pub fn extlinux(cmdline: &str) -> String {
    format!(
        "default one\nlabel one\n  linux /payload.elf\n  append {cmdline}\n\
         label two\n  linux /payload.elf\n  append hello\n\
         label broken\n  linux /truncated.elf\n"
    )
}

/// A disk in this folder with the payload, and a configuration that boots it.
pub fn payload_disk(dir: &Path, config: &str, more: &[(&str, &[u8])]) -> PathBuf {
    let payload = fs::read(guest::payload()).expect("the payload");
    let mut files = vec![
        ("extlinux.conf", config.as_bytes()),
        ("payload.elf", &payload),
    ];
    files.extend(more);
    image::ext4(dir, "root.img", &files, 16)
}

/// The kernel, or rather its command line, is another one by the time of the reset.
#[test]
fn the_kernel_is_read_again_for_a_reset() {
    let run = Run::new(&Vmi::new("boots").disk(Disk::new("root")));
    let disk = payload_disk(&run.dir(), &extlinux("ticker secs=100000"), &[]);
    let mut guest = run.volume("root", &disk).start();
    guest.wait_for("TICK");
    guest.log_has(&["booting entry \"one\" (\"one\") of disk \"root\": \"/payload.elf\""]);
    has_nothing(&Process::new(guest.child("podvisor-boot")), &disk);
    image::replace(&disk, "/extlinux.conf", extlinux("hello").as_bytes());
    guest.control().tell("reset");
    guest.wait_for("PAYLOAD-DONE");
    guest.exits_with(0);
}

/// A disk that cannot be booted any more when its guest reboots ends the run, as it would end in a firmware's prompt.
#[test]
fn a_disk_that_cannot_be_booted_any_more() {
    let run = Run::new(&Vmi::new("broken").disk(Disk::new("root")));
    let disk = payload_disk(&run.dir(), &extlinux("ticker secs=100000"), &[]);
    let payload = fs::read(guest::payload()).expect("the payload");
    let mut guest = run.volume("root", &disk).start();
    guest.wait_for("TICK");
    image::replace(&disk, "/payload.elf", &payload[..payload.len() / 2]);
    guest.control().tell("reset");
    guest.exits_with(2);
    guest.log_has(&["/payload.elf", "it is truncated"]);
}

/// As Debian's images are: GPT, an ESP, GRUB's configuration and an initial RAM disk in ext4. The disk with the
/// lower boot order is the second one. Linux reboots in place, by the same entry.
#[test]
fn linux_boots_and_reboots_from_its_own_grub_cfg() {
    let vmi = Vmi::new("grub").disk(Disk::new("data").boot_order(2));
    let run = Run::new(&vmi.disk(Disk::new("root").boot_order(1)));
    let cmdline = guest::linux_cmdline("reboot");
    let config = format!(
        "set default=0\nif [ -s $prefix/grubenv ]; then load_env; fi\n\
         if [ \"${{saved_entry}}\" ]; then set default=\"${{saved_entry}}\"; fi\n\
         menuentry 'Broken' {{ linux /boot/gone }}\n\
         menuentry 'Linux' --id linux {{\n  search --no-floppy --fs-uuid --set=root {}\n\
         linux /boot/vmlinux {cmdline}\n  initrd /boot/initrd\n}}\n",
        image::UUID
    );
    let kernel = fs::read(guest::vmlinux()).expect("the kernel");
    let initrd = fs::read(guest::initrd()).expect("the initrd");
    let files = [
        ("boot/grub/grub.cfg", config.as_bytes()),
        (
            "boot/grub/grubenv",
            b"# GRUB Environment Block\nsaved_entry=linux\n###",
        ),
        ("boot/vmlinux", &kernel),
        ("boot/initrd", &initrd),
    ];
    let root = image::ext4(&run.dir(), "part.img", &files, 64);
    let disk = run.dir().join("disk.img");
    partitioned(&disk, &root);
    let data = image::zeros(&run.dir(), "data.img", MIB);
    let run = run.volume("root", &disk).volume("data", &data);
    let mut guest = run.start();
    guest.wait_for("RESULT boot=1");
    let vm = guest.vm_pid();
    guest.wait_for("RESULT boot=2");
    assert_eq!(guest.vm_pid(), vm, "it restarts in the same process");
    guest.exits_with(0);
    assert_eq!(image::read(&data)[..16], *b"000000000000002\n");
}

/// Debian's configuration as `grub-mkconfig` writes it, of two kernels (`tests/debian`).
#[test]
fn a_configuration_that_grub_mkconfig_wrote() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let boot = directory.path().join("boot");
    fs::create_dir(&boot).expect("writable");
    let names = ["6.1.0-9-cloud-amd64", "6.1.0-37-cloud-amd64"].map(|version| {
        [
            format!("vmlinuz-{version}"),
            format!("initrd.img-{version}"),
        ]
    });
    for name in names.as_flattened() {
        fs::write(boot.join(name), b"x").expect("writable");
    }
    let script = guest::repository().join("tests/debian/mkconfig.sh");
    let (script, path) = (script.to_string_lossy(), boot.to_string_lossy());
    host(&script, &["/", &path]);
    let config = fs::read(boot.join("grub/grub.cfg")).expect("a configuration");
    let files: [(&str, &[u8]); 1] = [("boot/grub/grub.cfg", &config)];
    let disk = image::ext4(directory.path(), "root.img", &files, 16);
    let run = Run::with_arguments(["image", "inspect"]).arg(&disk);
    let mut inspect = run.arg("-o").arg("json").start_at_once();
    inspect.exits_with(0);
    let text = inspect.console.text();
    let found: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let entries = found["bootEntries"].as_array().expect("entries");
    let id = format!("gnulinux-simple-{}", image::UUID);
    assert_eq!(found["defaultBootEntry"], id, "{text}");
    let simple = entries.iter().find(|entry| entry["id"] == id);
    let simple = simple.expect("the default is there");
    assert_eq!(
        simple["kernel"]["path"],
        "/boot/vmlinuz-6.1.0-37-cloud-amd64"
    );
    let initrds = simple["initrds"].as_array().expect("initial RAM disks");
    let initrds: Vec<_> = initrds.iter().map(|initrd| &initrd["path"]).collect();
    assert_eq!(initrds, ["/boot/initrd.img-6.1.0-37-cloud-amd64"]);
    let options = simple["options"].as_str().expect("options");
    let expected = format!("root=UUID={} ro", image::UUID);
    assert!(options.starts_with(&expected), "{options}");
    // Each kernel in the submenu, as it is and for recovery.
    let of = |kernel: &str| {
        let path = format!("/boot/vmlinuz-{kernel}-cloud-amd64");
        entries
            .iter()
            .filter(|entry| entry["kernel"]["path"] == path)
            .count()
    };
    assert_eq!((of("6.1.0-37"), of("6.1.0-9")), (3, 2), "{text}");
}

/// A disk with a GPT and the partition in it.
fn partitioned(disk: &Path, part: &Path) {
    let bytes = part.metadata().expect("there").len();
    let file = fs::File::create(disk).expect("writable");
    file.set_len(bytes + 2 * MIB as u64).expect("writable");
    let last = (MIB as u64 + bytes) / 512 - 1;
    let (new, kind) = (format!("--new=1:2048:{last}"), "--typecode=1:8300");
    let disk = disk.to_str().expect("a path of ours");
    host("sgdisk", &[&new, kind, disk]);
    let (input, output) = (format!("if={}", part.display()), format!("of={disk}"));
    host(
        "dd",
        &[
            &input,
            &output,
            "bs=1M",
            "seek=1",
            "conv=notrunc,sparse",
            "status=none",
        ],
    );
}

/// What cannot be booted is told before anything runs, with the disk and the reason.
#[test]
fn what_cannot_be_booted_is_refused() {
    let payload = fs::read(guest::payload()).expect("the payload");
    let truncated: (&str, &[u8]) = ("truncated.elf", &payload[..5000]);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = payload_disk(directory.path(), &extlinux("hello"), &[truncated]);
    let empty = image::zeros(directory.path(), "empty.img", MIB);
    let vmi = Vmi::new("refused").disk(Disk::new("root"));
    let run = |disk: &Path| Run::new(&vmi).volume("root", disk);
    for (run, status, words) in [
        (
            run(&empty),
            2,
            ["disk \"root\": There is no boot entry", "image inspect"],
        ),
        (
            run(&disk).arg("--boot-entry").arg("three"),
            2,
            ["\"three\"", "\"one\", \"two\""],
        ),
        (
            run(&disk).arg("--boot-entry").arg("broken"),
            2,
            ["/truncated.elf", "it is truncated"],
        ),
        (
            run(&disk).arg("--initrd").arg(guest::initrd()),
            2,
            ["--initrd", "no --kernel"],
        ),
        (
            run(&disk).kernel(&empty),
            2,
            ["Cannot boot the kernel", "empty.img"],
        ),
        (
            run(&disk).arg("--firmware").arg(guest::payload()),
            2,
            ["Cannot boot the firmware", "firmware yet"],
        ),
        (
            Run::new(&Vmi::new("none")),
            2,
            ["spec.domain.devices.disks", "--kernel"],
        ),
    ] {
        let mut guest = run.start_at_once();
        guest.exits_with(status);
        guest.log_has(&words);
    }
    let mut guest = run(&disk).arg("--boot-entry").arg("two").start();
    guest.wait_for("PAYLOAD-DONE");
    guest.exits_with(0);
}

/// A qcow2 image over a raw one, beside it.
fn overlay(disk: &Path) -> PathBuf {
    let path = disk.with_extension("qcow2");
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([disk, &path])
        .status();
    assert!(status.expect("qemu-img runs").success());
    path
}

/// The image of a vendor as KubeVirt's users have it: a container disk in qcow2, without a kernel beside it.
#[test]
fn a_container_disk_boots_its_own_kernel() {
    let vmi = Vmi::new("golden").disk(Disk::new("root").from("containerDisk: {image: golden}"));
    let run = Run::new(&vmi.domain_field("firmware", "{bootloader: {efi: {secureBoot: false}}}"));
    let disk = payload_disk(&run.dir(), &extlinux("sane"), &[]);
    let packed = disk.with_file_name("golden.qcow2");
    let status = Command::new("qemu-img")
        .args(["convert", "-O", "qcow2", "-c"])
        .args([&disk, &packed])
        .status();
    assert!(status.expect("qemu-img runs").success());
    let before = image::read(&packed);
    let mut guest = run.volume("root", &packed).start();
    assert!(guest.result("sane").starts_with("ok"));
    guest.exits_with(0);
    guest.log_has(&["there is no firmware: podvisor boots the kernel"]);
    assert!(
        image::read(&packed) == before,
        "a container disk is not written to"
    );
}

#[test]
fn a_disk_is_inspected() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = extlinux("hello");
    let release = b"ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian \x1b[2J 12\"\n";
    let files: [(&str, &[u8]); 2] = [
        ("extlinux.conf", config.as_bytes()),
        ("etc/os-release", release),
    ];
    let disk = image::ext4(directory.path(), "root.img", &files, 16);
    let mut inspect = Run::with_arguments(["image", "inspect"])
        .arg(&disk)
        .start_at_once();
    inspect.exits_with(0);
    let text = inspect.console.text();
    for words in [
        "format       raw",
        "ext4",
        image::UUID,
        "* one",
        "Debian \\u{1b}[2J 12",
        "/payload.elf",
    ] {
        assert!(text.contains(words), "{words:?} in {text}");
    }
    let run = Run::with_arguments(["image", "inspect"]).arg(&disk);
    let mut inspect = run.arg("-o").arg("json").start_at_once();
    inspect.exits_with(0);
    let json: serde_json::Value = serde_json::from_str(&inspect.console.text()).expect("JSON");
    assert_eq!(json["format"], "raw");
    assert_eq!(json["bootEntries"][0]["kernel"]["path"], "/payload.elf");
    assert_eq!(
        (&json["os"]["id"], &json["defaultBootEntry"]),
        (&"debian".into(), &"one".into())
    );
    let layers = overlay(&disk);
    let run = Run::with_arguments(["image", "inspect"]).arg(&layers);
    let mut inspect = run.arg("-o").arg("json").start_at_once();
    inspect.exits_with(0);
    let mut layered: serde_json::Value =
        serde_json::from_str(&inspect.console.text()).expect("JSON");
    assert_eq!(layered["format"], "qcow2");
    layered["format"] = "raw".into();
    assert_eq!(layered, json);
    let mut inspect = Run::with_arguments(["image", "inspect"])
        .arg("/nowhere")
        .start_at_once();
    inspect.exits_with(5);
}

/// One thread, no capability, a filter, its socket, the log and the disk.
fn has_nothing(reader: &Process, disk: &Path) {
    assert_eq!(reader.threads().len(), 1);
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(reader.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(reader.status("NoNewPrivs"), "1");
    assert_eq!(reader.status("Seccomp"), "2");
    assert_eq!(reader.read("environ").trim_matches('\0'), "");
    let descriptors = reader.descriptors();
    let [socket, log, errors, image] = &descriptors[..] else {
        panic!("{descriptors:?}");
    };
    assert!(socket.starts_with("socket:"), "{descriptors:?}");
    assert!(log.starts_with("pipe:") && log == errors, "{descriptors:?}");
    assert!(image.ends_with("root.img"), "{image} for {disk:?}");
    let memory = reader.private_kib();
    println!("the reader of boot disks has {memory} KiB for itself");
    assert!(memory <= MEMORY, "{memory} KiB");
}

/// Where Rust's library ends the process that reads disks, it dies of SIGABRT, and not of a call that no filter has.
#[test]
fn a_reader_that_has_no_memory_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = payload_disk(dir.path(), &extlinux("hello"), &[]);
    let inspect = |kibibytes: u64, wrapper: &[&str]| {
        let limit = format!("--as={}", kibibytes << 10);
        let words = wrapper.iter().copied().chain(["prlimit", &limit]);
        let run = Run::with_arguments(["image", "inspect"]).arg(&disk);
        let mut inspect = run.within(words).start_at_once();
        (inspect.wait().success(), inspect.log.text())
    };
    // The most that is not enough, of which the reader's last allocation fails.
    let (mut little, mut enough) = (4 << 10, 256 << 10);
    while enough - little > 16 {
        let middle = u64::midpoint(little, enough);
        match inspect(middle, &[]).0 {
            true => enough = middle,
            false => little = middle,
        }
    }
    let trace = dir.path().join("trace");
    let strace = format!("strace -f -qq -e trace=none -o {}", trace.display());
    let strace: Vec<_> = strace.split(' ').collect();
    let (_, log) = inspect(little, &strace);
    assert!(log.contains("memory allocation of"), "{log}");
    let signals = fs::read_to_string(trace).expect("a trace");
    assert!(signals.contains("killed by SIGABRT"), "{signals}");
    assert!(!signals.contains("SIGSYS"), "{signals}");
}
