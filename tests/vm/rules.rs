//! Each rule of the seccomp filters is needed: some run here uses it, or it says why none does.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use podvisor_tests::PATIENCE;
use podvisor_tests::gdb::Gdb;
use podvisor_tests::handler::{self, Handler, Pipe};
use podvisor_tests::image::{self, MIB};
use podvisor_tests::netns::PodNetwork;
use podvisor_tests::rules::{Rules, strace};
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::{Disk, Vmi};
use serde_json::json;

use crate::bootdisk::{extlinux, payload_disk};

/// A run under strace, in a pod's network if one is given.
struct Traced {
    guest: Guest,
    trace: PathBuf,
}

impl Traced {
    fn start(run: Run, network: Option<&PodNetwork>, strace_options: &[&str]) -> Self {
        let trace = run.dir().join("trace");
        let mut words = network.map(PodNetwork::wrapper).unwrap_or_default();
        words.extend(strace(&trace, strace_options));
        Self {
            guest: run.within(words).start(),
            trace,
        }
    }

    /// Waits for the end and marks what was used.
    fn end(mut self, code: i32, rules: &mut Rules) {
        self.guest.exits_with(code);
        let program = podvisor_tests::guest::podvisor();
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        rules.mark(&self.trace, &name);
    }
}

#[test]
fn each_rule_is_needed() {
    let mut rules = Rules::read();
    let network = PodNetwork::new();
    every_device(&network, &mut rules);
    masquerade(&network, &mut rules);
    writes_without_io_uring(&mut rules);
    every_command(&mut rules);
    under_kubevirt(&mut rules);
    boots_from_a_disk(&mut rules);
    under_gdb(&mut rules);
    for (how, code) in [("triple", 3), ("panic", 3)] {
        let run = Run::new(&Vmi::new("crash")).payload(&format!("crash how={how}"));
        Traced::start(run, None, &[]).end(code, &mut rules);
    }
    let unused = rules.unused();
    assert!(
        unused.is_empty(),
        "no run used these rules:\n{}",
        unused.join("\n")
    );
}

fn every_device(network: &PodNetwork, rules: &mut Rules) {
    let vmi = Vmi::new("devices").topology(1, 2, 1).multi_queue();
    let vmi = vmi.network().rng().disk(Disk::new("root"));
    let run = Run::new(&vmi.disk(Disk::new("constant").read_only().cache("writeback")));
    let image = image::zeros(&run.dir(), "root.img", MIB);
    let constant = image::filled(&run.dir(), "constant.img", MIB);
    let run = run.volume("root", &image).volume("constant", &constant);
    let traced = Traced::start(run.payload("hostile secs=5"), Some(network), &[]);
    traced.guest.wait_for("RESULT sane_after=ok");
    traced.end(0, rules);
}

/// A network whose restoring needs nftables and settings.
fn masquerade(network: &PodNetwork, rules: &mut Rules) {
    let run = Run::new(&Vmi::new("masquerade").network()).payload("sane");
    let path = run.dir().join("vmi.yaml");
    let vmi = fs::read_to_string(&path).expect("the VMI");
    fs::write(&path, vmi.replace("bridge: {}", "masquerade: {}")).expect("ours");
    Traced::start(run, Some(network), &[]).end(0, rules);
}

/// As where a container's profile refuses it. A call that the filter allows stands in for it, so
/// that strace can answer.
fn writes_without_io_uring(rules: &mut Rules) {
    let refuse = ["-e", "inject=io_uring_setup:error=EPERM:syscall=getpid"];
    let run = Run::new(&Vmi::new("sync").disk(Disk::new("root")));
    let image = image::zeros(&run.dir(), "root.img", MIB);
    let run = run.volume("root", &image);
    let run = run.payload("blkbench secs=1 cases=randread:1,randwrite:1,flush:1");
    let traced = Traced::start(run, None, &refuse);
    traced.guest.wait_for("PAYLOAD-DONE");
    traced.end(0, rules);
}

/// A configuration with a guest that goes on until it is ended.
fn endless() -> String {
    extlinux("ticker secs=100000")
}

/// A machine that virt-handler starts, asks, has boot again and ends.
fn under_kubevirt(rules: &mut Rules) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let trace = directory.path().join("trace");
    let disk = payload_disk(directory.path(), &endless(), &[]);
    let mut pod = handler::pod_with(30, strace(&trace, &[]), Some(&disk)).start();
    handler::wait_until_ready(&pod);
    let mut handler = Handler::connect(&pod);
    let pipe = Pipe::listen(&pod);
    let vmi = handler::vmi_request(&handler::disk_vmi());
    let sync = handler.cmd("SyncVirtualMachine", vmi);
    sync.is_done();
    pipe.wait_for("ADDED Running/Unknown");
    pod.log.wait_for("booting entry", PATIENCE);
    drop(Handler::connect(&pod));
    handler::mount_volume(&pod, "data");
    let mut vmi = handler::disk_vmi();
    handler::add_volume(&mut vmi, "data", "MountedToPod");
    let sync = handler.cmd("SyncVirtualMachine", handler::vmi_request(&vmi));
    sync.is_done();
    pipe.wait_for_value("/Spec/Devices/Disks/1/Target/Device", "vdb", 0);
    handler.ask("ResetVirtualMachine").is_done();
    pod.log.wait_for("booting entry", PATIENCE);
    handler.ask("KillVirtualMachine").is_done();
    pipe.wait_for("MODIFIED Shutoff/Destroyed");
    handler.ask("DeleteVirtualMachine").is_done();
    pod.exits_with(0);
    rules.mark(&trace, "podvisor");
}

/// Twice: the reset has the kernel read again.
fn boots_from_a_disk(rules: &mut Rules) {
    let run = Run::new(&Vmi::new("boots").disk(Disk::new("root")));
    let disk = payload_disk(&run.dir(), &endless(), &[]);
    let traced = Traced::start(run.volume("root", &disk), None, &[]);
    traced.guest.wait_for("TICK");
    let mut control = traced.guest.control();
    control.tell("reset");
    control.wait_for("reset");
    control.tell("stop");
    traced.end(4, rules);
}

/// Breakpoints, a step, memory, and registers of each kind.
fn under_gdb(rules: &mut Rules) {
    let run = Run::new(&Vmi::new("gdb")).payload("hello");
    let socket = run.dir().join("gdb.sock");
    let run = run.arg("--gdb").arg(format!("unix:{}", socket.display()));
    let traced = Traced::start(run, None, &[]);
    traced.guest.wait_until_running();
    let mut gdb = Gdb::start(&podvisor_tests::guest::payload());
    gdb.ask(&format!("target remote {}", socket.display()), "0x");
    gdb.tell("hbreak *($pc + 1)");
    gdb.tell("stepi");
    assert_ne!(gdb.value("*(unsigned char *)$pc"), 0);
    for register in ["$r15", "$cr2", "$xmm7.v2_int64[0]"] {
        gdb.tell(&format!("set {register} = 5"));
        assert_eq!(gdb.value(register), 5);
    }
    gdb.tell("delete");
    gdb.tell("detach");
    traced.end(0, rules);
}

/// All commands, a client of the console, a reset in place, a forced stop.
fn every_command(rules: &mut Rules) {
    let vmi = Vmi::new("commands").topology(1, 2, 1).grace_seconds(0);
    let run = Run::new(&vmi).payload("ticker secs=100000");
    let console = run.dir().join("console.sock");
    let run = run
        .arg("--console")
        .arg(format!("unix:{}", console.display()));
    let trace = run.dir().join("boot.json");
    let volumes = run.dir();
    let image = image::zeros(&volumes, "later.img", MIB);
    let run = run.arg("--open-below").arg(volumes);
    let traced = Traced::start(run.arg("--boot-trace").arg(trace), None, &[]);
    traced.guest.wait_until_running();
    let client = UnixStream::connect(&console).expect("the console takes a client");
    let mut lines = BufReader::new(&client).lines();
    let is_tick = |line: std::io::Result<String>| line.is_ok_and(|line| line.contains("TICK"));
    assert!(lines.any(is_tick), "the guest runs");
    let mut control = traced.guest.control();
    control.pause();
    control.resume();
    control.stats();
    control.status();
    let file = json!({"command": "status", "open": {"path": image}});
    assert_eq!(control.call(file)["error"]["sent"], 1);
    control.tell("powerButton");
    control.tell("reset");
    control.wait_for("reset");
    drop(client);
    control.tell("stop");
    traced.end(4, rules);
}
