//! A guest that attacks every register, port and queue that it finds, with the real devices behind.
//!
//! The two runs take a minute together. `HOSTILE_SECS` makes each of them longer, `HOSTILE_SEED`
//! repeats one, see the README.
//!
//! That nothing outside of the guest's memory is touched is shown as far as it can be seen from
//! outside: in the first run, memory of the guest that no device was told of keeps its content (next
//! to what they were told of, and where addresses that lose their high bits would end up); read-only images theirs,
//! images their length, the pod its network; no file is mapped that was not. What a stray write
//! inside the vm process would do is the fuzz targets' business: theirs run under AddressSanitizer
//! with guest memory between inaccessible pages.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use podvisor_tests::PATIENCE;
use podvisor_tests::footprint::{Footprint, Watch, mapped_files};
use podvisor_tests::image::{self, MIB};
use podvisor_tests::netns::PodNetwork;
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::{Disk, Nic, Vmi};

/// What each process may grow by.
const MAX_GROWTH_KIB: u64 = 8 << 10;
/// Lines of log that a guest can cause without a reset of the machine.
const MAX_LOG: usize = 200;
/// What a file that is the console may grow to, bytes.
const MAX_CONSOLE: u64 = 16 << 20;
/// Lines of log alike in a minute, with the one that says that there are no more.
const MAX_LIKE: usize = 11;
/// Seed of the run that is the same every time.
const SEED: &str = "20261124";
/// Seconds of each run.
const SECONDS: u64 = 30;

/// The machine survives, and devices that a reset leaves as new serve a driver that behaves.
#[test]
fn a_hostile_driver_harms_only_itself() {
    let secs = std::env::var("HOSTILE_SECS").ok();
    let secs = secs.map_or(SECONDS, |secs| {
        secs.parse().expect("HOSTILE_SECS is a number")
    });
    let seed = std::env::var("HOSTILE_SEED").unwrap_or(SEED.to_owned());
    attack(&on_a_tap("256Mi"), secs, &format!("used=apart seed={seed}"));
    // Memory on both sides of the hole, the time stamp counter for a seed, and used rings that lie
    // over other parts of a queue.
    attack(&behind_passt("4Gi"), secs, "");
}

fn on_a_tap(memory: &str) -> Vmi {
    machine(memory).multi_queue().network()
}

fn behind_passt(memory: &str) -> Vmi {
    machine(memory).nic(Nic::new("passt").field("ports", "[{port: 8080}]"))
}

/// All devices but a NIC.
fn machine(memory: &str) -> Vmi {
    let vmi = Vmi::new("hostile").memory(memory).topology(1, 2, 1).rng();
    vmi.disk(Disk::new("root").serial("PV"))
        .disk(Disk::new("constant").read_only())
}

fn attack(vmi: &Vmi, secs: u64, words: &str) {
    let network = PodNetwork::new();
    let before = network.pod.snapshot();
    let run = Run::new(vmi);
    let image = image::zeros(&run.dir(), "root.img", MIB);
    let constant = image::filled(&run.dir(), "constant.img", MIB);
    let extra = image::zeros(&run.dir(), "extra.img", MIB);
    let run = run.volume("root", &image).volume("constant", &constant);
    let mut guest = run
        .arg("--hotplug-slots=2")
        .payload(&format!("hostile secs={secs} {words}"))
        .within(network.wrapper())
        .start();
    guest.wait_for("HOSTILE devices=4");
    let vm = guest.child("podvisor-vm");
    let files = mapped_files(vm);
    let watches = [vm, guest.pid()].map(Watch::start);
    let mut mapped = files.clone();
    let given = wait_for_the_end(&guest, &extra, || mapped = mapped_files(vm));
    println!("a disk was given back {given} times");
    assert!(given > 0, "the guest gives nothing back");
    let canary = guest.result("canary");
    let result = guest.wait_for("RESULT hostile=done");
    assert_eq!(mapped, files);
    let [vm, launcher] = watches.map(Watch::stop);
    guest.wait_for("RESULT sane_after=ok devices=4 failed=0");
    guest.wait_for("PAYLOAD-DONE");
    guest.exits_with(0);
    println!("{result}\nvm process {vm:?}\nlauncher {launcher:?}");
    let lines = guest.console.lines();
    let changed = lines.iter().filter(|line| line.text.contains("CANARY "));
    changed.for_each(|line| println!("{}", line.text));
    let watched = words.contains("used=apart");
    assert_eq!(canary, if watched { "ok" } else { "unwatched" });
    for word in ["stuck_resets=0 ", "racers=1 ", "joined=true "] {
        assert!(result.contains(word), "{word:?} is missing in {result:?}");
    }
    check_growth(&vm);
    check_growth(&launcher);
    let log = guest.log.text();
    // Each call that adds the disk or asks for it has a line, which is our doing.
    let lines = log.lines().filter(|line| !line.contains("DEBUG Reply("));
    let lines = lines.count();
    println!("log: {lines} lines");
    let bound = MAX_LOG * (1 + secs as usize / 60);
    assert!(lines < bound, "the guest can fill the log");
    assert!(
        image::read(&constant) == image::pattern(MIB),
        "the read-only disk was written"
    );
    assert_eq!(fs::metadata(&image).expect("the image").len(), MIB as u64);
    network.pod.assert_is(&before);
}

/// Waits as long as the guest says every few seconds that it goes on. A disk comes and is asked for meanwhile, again
/// and again; how often the guest gave it back. `each_time` is called while it goes on: soon after its end there is no
/// process.
fn wait_for_the_end(guest: &Guest, extra: &Path, mut each_time: impl FnMut()) -> usize {
    let extra = extra.to_str().expect("UTF-8");
    let said = |line: &str| match line {
        line if line.starts_with("RESULT canary=") => Some(true),
        line if line.starts_with("ROUND ") => Some(false),
        _ => None,
    };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let disks = scope.spawn(|| {
            let mut given = 0;
            while !is_over.load(Ordering::Relaxed) {
                // Fails where the guest has kept it.
                guest.ctl(&["attach", "extra", extra]);
                let detached = guest.ctl(&["detach", "extra", "seconds=2"]);
                given += usize::from(detached.status.success());
            }
            given
        });
        let over = Over(&is_over);
        while !guest.console.wait_for_match(said, PATIENCE) {
            each_time();
        }
        drop(over);
        disks.join().expect("no panic")
    })
}

/// Says so when it is dropped, by a panic, too.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[track_caller]
fn check_growth((first, most): &(Footprint, Footprint)) {
    let growth = most.anonymous_kib - first.anonymous_kib;
    assert!(growth <= MAX_GROWTH_KIB, "grew by {growth} KiB");
}

/// Nobody reads as fast as a guest can write, or nobody at all: output is lost then, not kept. Nor does
/// it fill the disk.
#[test]
fn a_flood_of_output_does_not_grow_the_processes() {
    for target in ["none", "unix", "file"] {
        let run = Run::new(&Vmi::new("flood")).payload("flood secs=5");
        let dir = run.dir();
        let console = match target {
            "none" => "none".to_owned(),
            kind => format!("{kind}:{}", dir.join("console").display()),
        };
        let file = dir.join("console");
        if target == "file" {
            let file = fs::File::create(&file).expect("ours");
            file.set_len(MAX_CONSOLE - 1000).expect("sparse");
        }
        let mut guest = run.arg("--console").arg(console).start();
        guest.wait_until_running();
        let client = (target == "unix").then(|| silent_client(&dir.join("console")));
        let watches = [guest.vm_pid(), guest.pid()].map(Watch::start);
        guest.exits_with(0);
        drop(client);
        for footprint in watches.map(Watch::stop) {
            println!("{target}: {footprint:?}");
            check_growth(&footprint);
        }
        let full = "the console's file takes no more";
        let said = guest.log.text().matches(full).count();
        assert_eq!(said, usize::from(target == "file"), "{target}");
        if target == "file" {
            let size = fs::metadata(file).expect("the console's file").len();
            assert_eq!(size, MAX_CONSOLE);
        }
    }
}

/// A client of the console that never reads.
fn silent_client(path: &Path) -> std::os::unix::net::UnixStream {
    std::os::unix::net::UnixStream::connect(path).expect("the console takes connections")
}

/// Resets in place, again and again, each with I/O in flight on every queue of every device, leave
/// nothing behind.
#[test]
fn resets_without_end_leak_nothing() {
    const RESETS: usize = 200;
    const WARM: usize = 20;
    let network = PodNetwork::new();
    let run = Run::new(&on_a_tap("128Mi"));
    let image = image::zeros(&run.dir(), "root.img", MIB);
    let constant = image::filled(&run.dir(), "constant.img", MIB);
    let run = run.volume("root", &image).volume("constant", &constant);
    let start = Instant::now();
    let mut guest = run.payload("storm").within(network.wrapper()).start();
    let warm = after_resets(&guest, WARM);
    let end = after_resets(&guest, RESETS - WARM);
    println!("after {WARM}: {warm:?}\nafter {RESETS}: {end:?}");
    for (warm, end) in warm.iter().zip(&end) {
        assert!(end.anonymous_kib <= warm.anonymous_kib + MAX_GROWTH_KIB);
        // Some more or fewer are open in each boot, as queues are set up more or less right.
        assert!(end.descriptors < warm.descriptors + (RESETS - WARM) / 2);
        assert!(end.threads < warm.threads + (RESETS - WARM) as u64 / 2);
    }
    let mut control = guest.control();
    let stats = control.stats();
    for disk in ["root", "constant"] {
        // Rings outlive machines, since none can be made any more.
        let disk = &stats["devices"][disk];
        assert_eq!(disk["engine"], "ioUring", "{disk}");
    }
    control.tell("stop");
    guest.exits_with(4);
    assert_eq!(image::read(&constant), image::pattern(MIB));
    let minutes = start.elapsed().as_secs() as usize / 60 + 1;
    for message in ["the guest was reset", "guest restarted in place"] {
        let log = guest.log.text();
        let lines = log.lines().filter(|line| line.contains(message)).count();
        assert!(lines <= MAX_LIKE * minutes, "{lines} times {message:?}");
        guest.log_has(&[&format!("for a minute, no more of {message:?}")]);
    }
}

/// The footprints of both processes when a machine that was reset `count` more times is built and
/// has started its devices.
fn after_resets(guest: &Guest, count: usize) -> [Footprint; 2] {
    for _ in 0..count {
        guest.wait_for("STORM devices=4");
    }
    [guest.vm_pid(), guest.pid()].map(|pid| Footprint::of(pid).expect("the process runs"))
}
