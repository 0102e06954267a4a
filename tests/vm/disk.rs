//! Disks: what a guest sees, reads and writes, and what is durable.

use std::time::Duration;

use podvisor_tests::host;
use podvisor_tests::image::{self, MIB};
use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Disk, Vmi};
use rustix::process::{Signal, kill_process};

const RECORD: usize = 4096;

/// On a host that gives one ring of io_uring: whoever asks for the state is told what each disk does without, after a
/// reset, too.
#[test]
fn a_disk_without_rings_is_told() {
    let vmi = Vmi::new("rings").topology(1, 2, 1).multi_queue();
    let vmi = vmi.grace_seconds(0).disk(Disk::new("few"));
    let run = Run::new(&vmi.disk(Disk::new("none")));
    let image = image::zeros(&run.dir(), "few.img", MIB);
    let other = image::zeros(&run.dir(), "none.img", MIB);
    let trace = run.dir().join("trace");
    let strace = format!(
        "strace -f -qq -o {} -e trace=io_uring_setup -e inject=io_uring_setup:error=EPERM:syscall=getpid:when=2+",
        trace.display()
    );
    let run = run.volume("few", &image).volume("none", &other);
    let run = run.within(strace.split(' ')).payload("ticker secs=100000");
    let mut guest = run.start();
    guest.wait_for("TICK");
    let refused = "Operation not permitted (os error 1)";
    let mut control = guest.control();
    for _ in 0..2 {
        let fallbacks = control.ask("status")["fallbacks"].take();
        assert_eq!(fallbacks["none"], format!("no io_uring: {refused}"));
        // A worker for each processor.
        if std::thread::available_parallelism().is_ok_and(|count| count.get() > 1) {
            assert_eq!(
                fallbacks["few"],
                format!("1 of 2 io_uring rings: {refused}")
            );
            guest.log_has(&["1 of 2 io_uring rings: queues share them"]);
        }
        control.ask("reset");
    }
    guest.log_has(&["no io_uring, using preadv2 and pwritev2"]);
    // strace would not pass a signal on.
    control.tell("stop");
    guest.exits_with(4);
}

/// One boot with one vCPU for all that takes no kill: identity, a checksummed copy, a read-only
/// disk, discard, random numbers.
#[test]
fn linux_uses_its_disks() {
    let vmi = Vmi::new("disks")
        .rng()
        .disk(Disk::new("source").serial("PV-SOURCE").cache("writeback"))
        .disk(
            Disk::new("target")
                .serial("PV-TARGET")
                .cache("none")
                .block_size(4096),
        )
        .disk(
            Disk::new("constant")
                .read_only()
                .cache("writethrough")
                .match_volume(),
        );
    let run = Run::new(&vmi);
    let source = image::filled(&run.dir(), "source.img", 17 * MIB);
    let target = image::zeros(&run.dir(), "target.img", 32 * MIB);
    let constant = image::filled(&run.dir(), "constant.img", MIB);
    let run = run.volume("source", &source).volume("target", &target);
    let run = run
        .volume("constant", &constant)
        .linux("hello,blkcopy,rng,roprobe,discard");
    let said = run.dir().join("hvc0.log");
    let run = run.arg(format!("--virtio-console=file:{}", said.display()));
    let run = run.cmdline("podvisor.disk=vdc loglevel=6 console=hvc0 console=ttyS0");
    let mut guest = run.start();

    guest.wait_for("GUEST-INIT-READY");
    guest.wait_for("GUEST-DONE");
    guest.exits_with(0);
    let said = std::fs::read_to_string(&said).expect("the virtio console's file");
    assert!(said.contains("[vda] 34816 512-byte"), "{said}");
    let system = rustix::fs::statfs(&constant).expect("a file system");
    let (logical, physical) = (system.f_bsize.min(4096), system.f_bsize);
    let expected = [
        ("logical_block_size.vdc", &*logical.to_string()),
        ("physical_block_size.vdc", &physical.to_string()),
        ("cpus", "1"),
        ("serial.vda", "PV-SOURCE"),
        ("serial.vdb", "PV-TARGET"),
        ("sectors.vda", "34816"),
        ("logical_block_size.vda", "512"),
        ("logical_block_size.vdb", "4096"),
        ("physical_block_size.vdb", "4096"),
        ("write_cache.vda", "write back"),
        ("write_cache.vdc", "write through"),
        ("ro.vda", "0"),
        ("ro.vdc", "1"),
        ("ro", "1"),
        ("write", "refused"),
        ("discard", "ok"),
        ("bytes", "1024"),
    ];
    for (key, value) in expected {
        assert_eq!(guest.result(key), value, "{key}");
    }
    assert!(guest.result("rng").starts_with("virtio_rng"));

    let pattern = image::pattern(17 * MIB);
    let copied = image::read(&target);
    assert!(
        copied[..16 * MIB] == pattern[..16 * MIB],
        "the copy differs on the host"
    );
    assert!(
        copied[16 * MIB..].iter().all(|byte| *byte == 0),
        "more than the copy was written"
    );
    let copy = run_sha256(&copied[..16 * MIB]);
    assert_eq!(guest.result("sha256"), copy);
    assert_eq!(guest.result("copy.sha256"), copy);
    assert!(
        image::read(&constant) == pattern[..MIB],
        "the read-only disk was written"
    );
    let discarded = image::read(&source);
    assert!(
        discarded[..MIB].iter().all(|byte| *byte == 0),
        "discarded blocks read as zeros"
    );
    assert!(
        discarded[MIB..] == pattern[MIB..],
        "more than the discarded blocks changed"
    );
}

/// The vm process is killed at a moment of its own choosing; each record whose flush the guest saw
/// return is in the image.
#[test]
fn what_was_flushed_survives_a_kill() {
    let vmi = Vmi::new("flush").disk(Disk::new("root"));
    let run = Run::new(&vmi);
    let image = image::zeros(&run.dir(), "root.img", 64 * MIB);
    let mut guest = run.volume("root", &image).linux("flushloop").start();
    guest.wait_for("FLUSHED 20");
    kill_process(guest.vm_pid(), Signal::KILL).expect("the vm process runs");
    guest.exits_with(1);
    guest.log_has(&["The vm process was killed by signal 9 (SIGKILL)"]);

    let lines = guest.console.lines();
    let flushed = |text: &str| text.strip_prefix("FLUSHED ")?.parse::<usize>().ok();
    // The last line may be cut short, to the number of an earlier record.
    let last = lines.iter().filter_map(|line| flushed(&line.text)).max();
    let last = last.expect("records were flushed");
    let disk = image::read(&image);
    for number in 1..=last {
        let record = &disk[(number - 1) * RECORD..number * RECORD];
        let line = format!("{number:015}\n");
        let whole = record
            .chunks(line.len())
            .all(|chunk| chunk == line.as_bytes());
        assert!(whole, "record {number} of {last} is not in the image");
    }
}

/// A full file system under the image: the machine stands still, which is told once with its cause, and goes on
/// when there is room, with nothing lost.
#[test]
fn a_full_file_system_pauses_the_machine() {
    let vmi = Vmi::new("full").memory("256Mi").disk(Disk::new("root"));
    let run = Run::new(&vmi.field("startStrategy", "Paused"));
    let volume = run.dir().join("volume");
    std::fs::create_dir(&volume).expect("a new directory");
    let mounted = Mounted::tmpfs(&volume, "8m");
    let image = image::zeros(&volume, "root.img", 64 * MIB);
    let run = run.volume("root", &image);
    let mut guest = run.payload("blkbench cases=seqwrite:1 secs=2").start();
    guest.log.wait_for("Paused", Duration::from_secs(60));
    let mut control = guest.control();
    // An error may be told before the answer.
    control.tell("resume");
    let error = control.wait_for("hostError");
    assert_eq!(error["device"], "root");
    assert_eq!(error["operation"], "write");
    assert_eq!(error["errno"], 28);
    assert_eq!(error["stops"], true);
    let paused = control.wait_for("paused");
    assert_eq!(paused["state"], "paused");

    // Nothing has changed, so it stands still again.
    control.tell("resume");
    control.wait_for("hostError");
    control.wait_for("paused");
    assert_eq!(control.stats()["devices"]["root"]["errors"], 0);

    mounted.resize("80m");
    control.tell("resume");
    let result = guest.result("bench");
    assert!(result.starts_with("blk"), "{result}");
    guest.exits_with(0);
    guest.log_has(&["disk root failed on the host", "No space left on device"]);
    assert!(
        result.contains(" errors=0 "),
        "no request was lost: {result}"
    );
}

/// A file system of its own below a path.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(path: &std::path::Path, size: &str) -> Self {
        mount(
            &["-t", "tmpfs", "-o", &format!("size={size}"), "none"],
            path,
        );
        Self(path.to_owned())
    }

    fn resize(&self, size: &str) {
        mount(&["-o", &format!("remount,size={size}")], &self.0);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

fn mount(words: &[&str], path: &std::path::Path) {
    let status = std::process::Command::new("mount")
        .args(words)
        .arg(path)
        .status();
    assert!(status.expect("mount runs").success(), "mount {words:?}");
}

#[test]
fn an_image_has_one_writer() {
    let vmi = Vmi::new("first").disk(Disk::new("root")).grace_seconds(0);
    let run = Run::new(&vmi);
    let image = image::zeros(&run.dir(), "root.img", MIB);
    let mut first = run.volume("root", &image).payload("ticker").start();
    first.wait_for("TICK");

    // Beside the gate of guests, since it never gets as far as one.
    let second = Run::new(&Vmi::new("second").disk(Disk::new("root")));
    let mut second = second
        .volume("root", &image)
        .payload("hello")
        .start_at_once();
    second.exits_with(5);
    second.log_has(&["root.img", "in use by another process"]);
    first.signal(Signal::TERM);
    first.exits_with(4);
}

/// Whoever waited for a machine's end has its image at once, though the kernel lets go of what a ring had open later.
#[test]
fn an_image_is_free_when_its_machine_has_ended() {
    for round in 1..=25 {
        let vmi = Vmi::new("free").memory("256Mi").disk(Disk::new("root"));
        let run = Run::new(&vmi);
        let image = image::zeros(&run.dir(), "root.img", MIB);
        let run = run.volume("root", &image);
        let mut guest = run.payload("blkbench cases=seqread:1 secs=0").start();
        guest.exits_with(0);
        let path = image.to_str().expect("UTF-8");
        println!("round {round}");
        host("qemu-img", &["info", "-f", "raw", path]);
    }
}

fn run_sha256(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("bytes");
    std::fs::write(&path, bytes).expect("the bytes can be written");
    image::sha256(&path)
}
