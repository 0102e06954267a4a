//! What is left to the two processes while a guest runs, read from `/proc`; and what happens to a
//! thread that wants more.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podvisor_tests::PATIENCE;
use podvisor_tests::image::{self, MIB};
use podvisor_tests::netns::PodNetwork;
use podvisor_tests::proc::Process;
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::{Disk, Vmi};
use rustix::process::{Signal, kill_process};
use serde_json::json;

const NONE: &str = "0000000000000000";
const NET_ADMIN: &str = "0000000000001000";

/// All capability sets but the bounding set.
const SETS: [&str; 4] = ["CapInh", "CapPrm", "CapEff", "CapAmb"];

#[test]
fn a_whole_machine_keeps_nothing() {
    let network = PodNetwork::new();
    let vmi = Vmi::new("jail").topology(1, 2, 1).rng().network();
    let run = Run::new(&vmi.disk(Disk::new("root")).grace_seconds(0));
    let image = image::zeros(&run.dir(), "root.img", MIB);
    // A descriptor, a variable and a supplementary group that somebody let slip.
    let slip = "exec 9</etc/passwd; exec setpriv --groups 4,5 env SLIPPED=1 \"$0\" \"$@\"";
    let mut words = network.wrapper();
    words.extend(["sh", "-ec", slip].map(str::to_owned));
    let run = run.volume("root", &image).payload("ticker secs=100000");
    let mut guest = run.within(words).start();
    guest.wait_for("TICK");
    let (launcher, vm) = (Process::new(guest.pid()), Process::new(guest.vm_pid()));

    // A thread names itself, which may come after the guest's first words.
    let deadline = Instant::now() + PATIENCE;
    let threads = loop {
        let threads = vm.threads();
        let names: Vec<_> = threads.iter().map(Process::name).collect();
        let wanted = ["podvisor-vm", "steward", "CPU 0/KVM", "CPU 1/KVM"];
        if wanted
            .iter()
            .all(|name| names.iter().any(|known| known == name))
        {
            break threads;
        }
        assert!(Instant::now() < deadline, "{names:?}");
        std::thread::sleep(Duration::from_millis(10));
    };
    // One, or two where the C library is glibc.
    let common = filters(&vm);
    assert!((1..=2).contains(&common), "{common} filters");
    for thread in &threads {
        has_no_privileges(thread, "107 107 107 107");
        let own = !["podvisor-vm", "steward"].contains(&thread.name().as_str());
        assert_eq!(
            filters(thread),
            common + u32::from(own),
            "{}",
            thread.name()
        );
    }
    // What the launcher had is overwritten.
    assert_eq!(vm.read("environ").trim_matches('\0'), "");
    has_known_descriptors(&vm, &image.to_string_lossy());
    has_tight_limits(&vm);
    is_alone(&vm, &launcher);

    assert_eq!(launcher.status("Uid"), "107 0 0 0");
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(launcher.status(set), NET_ADMIN, "{set} of the launcher");
    }
    is_filtered(&launcher);
    let slipped = |process: &Process| process.descriptors().contains(&"/etc/passwd".to_owned());
    assert!(
        !slipped(&launcher) && !slipped(&vm),
        "{:?}",
        launcher.descriptors()
    );
    guest.signal(Signal::TERM);
    guest.exits_with(4);
}

/// The first CPU is the vCPU's, and no other thread's.
fn has_its_cpu(vm: &Process) {
    let cpus = std::thread::available_parallelism().expect("of this process");
    let threads = vm.threads().into_iter();
    // KVM has one of its own in the process, which it makes on the vCPU's first run.
    for thread in threads.filter(|thread| !thread.name().starts_with("kvm-")) {
        let allowed = thread.status("Cpus_allowed_list");
        let first = allowed.split([',', '-']).next().map(str::to_owned);
        let own = vm
            .threads()
            .into_iter()
            .find(|thread| thread.name() == "CPU 0/KVM");
        let own = own.expect("a vCPU").status("Cpus_allowed_list");
        let is_own = thread.name() == "CPU 0/KVM";
        if cpus.get() > 1 {
            assert_eq!(first == Some(own), is_own, "{}: {allowed}", thread.name());
            assert!(!is_own || !allowed.contains([',', '-']), "{allowed}");
        }
    }
}

/// Guest RAM is to be of these nodes of the host's.
pub fn lies_on_nodes(vm: &Process, nodes: &[&str]) {
    let maps = vm.read("numa_maps");
    let preferred = maps.split_whitespace();
    let preferred: BTreeSet<_> = preferred
        .filter_map(|word| word.strip_prefix("prefer:"))
        .collect();
    assert_eq!(preferred, nodes.iter().copied().collect(), "{maps}");
}

fn filters(thread: &Process) -> u32 {
    let number = thread.status("Seccomp_filters");
    number.parse().expect("a number")
}

/// Without a network to restore, the launcher keeps no capability. The users are those asked for, and the vCPU has a
/// CPU to itself where there are two; that it cannot be a real-time one there, and RAM not be locked, is told.
#[test]
fn a_user_of_its_own() {
    let vmi = Vmi::new("user").grace_seconds(0);
    let vmi = vmi.cpu_field("dedicatedCpuPlacement", "true");
    let vmi = vmi.cpu_field("isolateEmulatorThread", "true");
    let vmi = vmi.cpu_field("realtime", "{}");
    let vmi = vmi.cpu_field("numa", "{guestMappingPassthrough: {}}");
    let limits = ["prlimit", "--rtprio=0", "--memlock=65536"];
    let run = Run::new(&vmi)
        .payload("ticker secs=100000")
        .within(["setpriv", "--bounding-set=-sys_resource"])
        .within(limits);
    let run = ["--uid", "12345", "--gid", "23456"]
        .into_iter()
        .fold(run, Run::arg);
    let mut guest = run.start();
    guest.wait_for("TICK");
    let (launcher, vm) = (Process::new(guest.pid()), Process::new(guest.vm_pid()));
    has_no_privileges(&vm, "12345 12345 12345 12345");
    has_its_cpu(&vm);
    lies_on_nodes(&vm, &["0"]);
    assert_eq!(vm.status("Gid"), "23456 23456 23456 23456");
    for set in [&SETS[..], &["CapBnd"]].concat() {
        assert_eq!(launcher.status(set), NONE, "{set} of the launcher");
    }
    is_filtered(&launcher);

    // The launcher may still kill it.
    kill_process(guest.vm_pid(), Signal::STOP).expect("the vm process runs");
    guest.signal(Signal::TERM);
    guest.exits_with(4);
    guest.log_has(&["the vm process did not end in time: killing it"]);
    guest.log_has(&["guest RAM may be swapped out: "]);
    if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1) {
        guest.log_has(&["vCPU 0 is not scheduled as real-time: Operation not permitted"]);
    }
}

/// Who called `sudo` has the machine, not KubeVirt's user.
#[test]
fn the_user_of_sudo() {
    let vmi = Vmi::new("sudo").grace_seconds(0);
    let run = Run::new(&vmi).payload("ticker secs=100000");
    let words = ["env", "SUDO_UID=12345", "SUDO_GID=23456"];
    let mut guest = run.within(words).start();
    guest.wait_for("TICK");
    let vm = Process::new(guest.vm_pid());
    has_no_privileges(&vm, "12345 12345 12345 12345");
    guest.signal(Signal::TERM);
    guest.exits_with(4);
}

#[test]
fn a_user_that_it_cannot_become() {
    let script = "exec setpriv --reuid 12345 --regid 23456 --clear-groups \"$0\" \"$@\"";
    let vmi = format!("STANDALONE_VMI={}", Vmi::new("nobody").to_yaml());
    let run = Run::with_arguments(["run"]).kernel("/proc/self/exe".as_ref());
    let run = ["--uid", "107", "--gid", "107"]
        .into_iter()
        .fold(run, Run::arg);
    let mut podvisor = run
        .within(["env", &vmi, "sh", "-ec", script])
        .start_at_once();
    podvisor.exits_with(2);
    podvisor.log_has(&["--uid and --gid need a launcher", "12345:23456"]);
}

#[test]
fn root_is_no_user_for_a_machine() {
    let args = ["run", "--uid", "0", "--gid", "107"];
    let mut podvisor = Run::with_arguments(args).start_at_once();
    podvisor.exits_with(2);
    podvisor.log_has(&["--uid", "0 is not in 1.."]);
}

/// A call that its filter forbids, put in the place of one that it makes, ends the run with a
/// report of what it was.
#[test]
fn each_role_is_killed_and_reported() {
    let network = PodNetwork::new();
    for (thread, role) in [
        ("podvisor-vm", "process"),
        ("steward", "process"),
        ("CPU 0/KVM", "vcpu"),
        ("blk-root", "block"),
        ("net-default", "net"),
        ("rng-rng", "device"),
    ] {
        let mut guest = hostile(&network);
        let vm = Process::new(guest.vm_pid());
        let mut control = guest.control();
        // It is a client only when it is answered.
        control.status();
        strike(&guest, &vm, thread);
        let ended = control.wait_for("ended");
        let call = json!({"role": role, "syscall": 107, "name": "geteuid"});
        assert_eq!(
            (&ended["exitStatus"], &ended["signal"], &ended["violation"]),
            (&json!(1), &json!(31), &call)
        );
        guest.exits_with(1);
        guest.log_has(&[
            "killed by signal 31 (SIGSYS)",
            &format!("a thread of role {role} made system call 107 (geteuid)"),
        ]);
    }
}

/// Whatever kills the vm process, log and clients are told, and the run is over.
#[test]
fn a_killed_vm_process_is_reported() {
    for (signal, name) in [(Signal::KILL, "SIGKILL"), (Signal::ABORT, "SIGABRT")] {
        let mut guest = Run::new(&Vmi::new("killed"))
            .payload("ticker secs=100000")
            .start();
        guest.wait_for("TICK");
        let mut control = guest.control();
        control.status();
        kill_process(guest.vm_pid(), signal).expect("the vm process runs");
        let ended = control.wait_for("ended");
        let number = signal.as_raw();
        assert_eq!(ended["exitStatus"], 1);
        assert_eq!(ended["signal"], number);
        guest.exits_with(1);
        guest.log_has(&[&format!("killed by signal {number} ({name})")]);
    }
}

/// The launcher has nobody to report to but its log, and the guest goes down with it.
#[test]
fn the_launcher_is_stopped_too() {
    let vmi = Vmi::new("watched").grace_seconds(0);
    let mut guest = Run::new(&vmi).payload("ticker secs=100000").start();
    guest.wait_for("TICK");
    let launcher = Process::new(guest.pid());
    let mut strace = inject(&launcher);
    guest.control().tell("stats");
    guest.exits_with(1);
    guest.log_has(&[
        "The launcher made system call 107 (geteuid), which its seccomp filter forbids",
    ]);
    strace.wait().expect("strace ends with the process");
}

/// A guest whose every device is busy.
fn hostile(network: &PodNetwork) -> Guest {
    let vmi = Vmi::new("busy").rng().network().disk(Disk::new("root"));
    let run = Run::new(&vmi);
    let image = image::zeros(&run.dir(), "root.img", MIB);
    let run = run.volume("root", &image).payload("hostile secs=600");
    let guest = run.within(network.wrapper()).start();
    guest.wait_for("podvisor-payload");
    guest
}

/// Strikes the thread `name` until the vm process is gone: device workers come and go, since this
/// guest resets its devices all the time.
fn strike(guest: &Guest, vm: &Process, name: &str) {
    let start = std::time::Instant::now();
    // For the one that waits for orders.
    let mut control = guest.control();
    while !vm.threads().is_empty() {
        assert!(start.elapsed() < PATIENCE, "{name} was never struck");
        let threads = vm.threads();
        let Some(thread) = threads.iter().find(|thread| thread.name() == name) else {
            continue;
        };
        let mut strace = inject(thread);
        if name == "podvisor-vm" {
            // It may have died since it was listed.
            let _ = control.try_tell("stats");
        }
        strace.wait().expect("strace ends with the thread");
    }
}

/// Turns the thread's next system call into a forbidden one. Its handler goes on to write and exit.
fn inject(thread: &Process) -> Child {
    let words = ["-qq", "-p", &thread.id(), "-e"];
    Command::new("strace")
        .args(words)
        .arg("inject=!write,pwritev2,exit_group:retval=0:syscall=geteuid")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("strace is there")
}

fn has_no_privileges(thread: &Process, uids: &str) {
    let name = thread.name();
    assert_eq!(thread.status("Uid"), uids, "{name}");
    assert_eq!(thread.status("Groups"), "", "{name}");
    for set in [&SETS[..], &["CapBnd"]].concat() {
        assert_eq!(thread.status(set), NONE, "{set} of {name}");
    }
    is_filtered(thread);
}

fn is_filtered(thread: &Process) {
    assert_eq!(thread.status("NoNewPrivs"), "1", "{}", thread.name());
    assert_eq!(thread.status("Seccomp"), "2", "{}", thread.name());
}

/// The control socket as standard input and once more, the log as both outputs; then what the
/// machine consists of.
fn has_known_descriptors(vm: &Process, image: &str) {
    let all = vm.descriptors();
    let named = all
        .iter()
        .filter(|target| !target.starts_with("anon_inode:"));
    let (sockets, rest): (Vec<_>, Vec<_>) = named
        .cloned()
        .partition(|target| target.starts_with("socket:"));
    assert!(sockets.len() == 2 && sockets[0] == sockets[1], "{all:?}");
    assert!(all[1].starts_with("pipe:") && all[1] == all[2], "{all:?}");
    let count = |text: &str| {
        rest.iter()
            .filter(|target| target.starts_with(text))
            .count()
    };
    let payload = podvisor_tests::guest::payload();
    let expected = [
        // The log twice, and the console.
        ("pipe:", 3),
        ("/dev/kvm", 1),
        (&payload.to_string_lossy(), 1),
    ];
    for (text, number) in expected {
        assert_eq!(count(text), number, "{text} in {all:?}");
    }
    // Those of devices once for all and once more for the machine of this boot.
    let (disk, tap) = (count(image), count("/dev/net/tun"));
    assert!((1..=2).contains(&disk) && (1..=2).contains(&tap), "{all:?}");
    assert_eq!(rest.len(), 5 + disk + tap, "{all:?}");
}

fn has_tight_limits(vm: &Process) {
    let both = |value: &str| (value.to_owned(), value.to_owned());
    assert_eq!(vm.limit("Max core file size"), both("0"));
    // Of a machine with a disk and a NIC.
    assert_eq!(vm.limit("Max open files"), both("256"));
    assert_eq!(vm.limit("Max processes"), both("4096"));
}

/// This host lets it make namespaces: nothing is mounted in its own.
fn is_alone(vm: &Process, launcher: &Process) {
    for kind in ["user", "mnt", "ipc", "uts", "cgroup"] {
        assert_ne!(vm.namespace(kind), launcher.namespace(kind), "{kind}");
    }
    let mounts = vm.read("mounts");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(
        mounts.starts_with("none / tmpfs ro,nosuid,nodev,noexec"),
        "{mounts}"
    );
}
