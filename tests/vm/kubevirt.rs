//! podvisor under a virt-handler: user 107 without any capability, driven over the real sockets in the order
//! that virt-handler keeps.

mod later;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use podvisor_tests::PATIENCE;
use podvisor_tests::control::Control;
use podvisor_tests::free_port;
use podvisor_tests::handler::{
    self, Handler, Pipe, container_disks, in_pod, pod, vmi, vmi_request, wait_until_ready,
};
use podvisor_tests::netns::Namespace;
use podvisor_tests::proc::Process;
use podvisor_tests::run::Guest;
use podvisor_tests::sidecar::Sidecar;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

/// A guest that goes on until it is ended.
const ENDLESS: &str = "ticker secs=100000";

/// A guest that reboots as soon as it runs, for ever.
const REBOOTS: &str = "crash how=reset";

/// gRPC's status of what the guest's agent is wanted for, and cannot be.
const CANNOT: u32 = 9;

/// gRPC's status of what is not done in the caller's time.
const LATE: u32 = 4;

/// PSS that the launcher and its parts may have, KiB, beside the vm process.
const MEMORY: u64 = 8 * 1024;

fn start(grace: u32) -> Guest {
    let pod = pod(grace, Vec::new()).start();
    wait_until_ready(&pod);
    pod
}

/// A pod whose machine runs, known to virt-handler.
fn running(grace: u32, cmdline: &str) -> (Guest, Handler, Pipe) {
    let pod = start(grace);
    let (handler, pipe) = started(&pod, cmdline);
    (pod, handler, pipe)
}

fn started(pod: &Guest, cmdline: &str) -> (Handler, Pipe) {
    let mut handler = Handler::connect(pod);
    let pipe = Pipe::listen(pod);
    start_by(&mut handler, &pipe, &vmi(cmdline));
    (handler, pipe)
}

fn start_by(handler: &mut Handler, pipe: &Pipe, vmi: &Value) {
    let request = vmi_request(vmi);
    handler.cmd("SyncVirtualMachine", request).is_done();
    pipe.wait_for("ADDED Running/Unknown");
}

/// What is left after the guest's end: virt-handler deletes the domain, and the pod ends well.
fn delete(mut pod: Guest, mut handler: Handler, pipe: &Pipe) {
    let disks = container_disks(&pod);
    assert_ne!(
        handler.domain(),
        json!(null),
        "the domain outlives the machine"
    );
    handler.ask("DeleteVirtualMachine").is_done();
    pipe.wait_for("MODIFIED NoState/NonExistent gone");
    pod.exits_with(0);
    let left = rustix::fs::openat(
        &disks,
        "disk_0.sock",
        rustix::fs::OFlags::PATH,
        rustix::fs::Mode::empty(),
    );
    left.expect_err("the containers of container disks are to end");
}

#[test]
fn a_machine_lives_as_virt_handler_wants() {
    let port = free_port();
    let address = format!("--metrics-address=127.0.0.1:{port}");
    let pod = pod(30, Vec::new()).arg(address).start();
    wait_until_ready(&pod);
    let mut handler = Handler::connect(&pod);
    before_the_machine(&pod, &mut handler);
    let answer = http(port, "GET /metrics");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");

    let pipe = Pipe::listen(&pod);
    let mut wanted = vmi(ENDLESS);
    handler::add_metrics(&mut wanted);
    let sync = |handler: &mut Handler| {
        let request = vmi_request(&wanted);
        handler.cmd("SyncVirtualMachine", request).is_done();
    };
    sync(&mut handler);
    sync(&mut handler);
    pipe.wait_for("ADDED Running/Unknown");
    let domain = handler.domain();
    assert_eq!(domain["Status"]["Status"], "Running");
    assert_eq!(domain["Spec"]["Metadata"]["KubeVirt"]["UID"], handler::UID);
    assert_eq!(domain["Spec"]["Name"], "default_testvm");

    consoles(&pod);
    metrics_of_the_host(&pod, &domain);
    let stats = handler.ask("GetDomainStats").is_done().text;
    assert!(stats.contains(r#""Name":"default_testvm""#), "{stats}");
    many_clients(&pod);
    prometheus(port);
    memory(&pod);

    handler.ask("PauseVirtualMachine").is_done();
    pipe.wait_for("MODIFIED Paused/User");
    people(&pod);
    sync(&mut handler);
    assert_eq!(handler.domain()["Status"]["Status"], "Paused");
    // Virt-handler restarts: nobody listens, and then another one.
    let words = pipe.words();
    assert_eq!(words, ["ADDED Running/Unknown", "MODIFIED Paused/User"]);
    let heard = pipe.listen_again(&pod, || {
        handler.ask("UnpauseVirtualMachine").is_done();
    });
    heard.wait_for("MODIFIED Running/Unknown");
    handler.ask("ResetVirtualMachine").is_done();
    let mut control = Control::connect(&in_pod(&pod, "podvisor/testvm.sock"));
    handler.ask("KillVirtualMachine").is_done();
    control.wait_for("ended");
    heard.wait_for("MODIFIED Shutoff/Destroyed");
    delete(pod, handler, &heard);
    let expected = [
        "ADDED Running/Unknown",
        "MODIFIED Paused/User",
        "MODIFIED Running/Unknown",
        "MODIFIED ShuttingDown/Unknown",
        "MODIFIED Shutoff/Destroyed",
        "MODIFIED NoState/NonExistent gone",
    ];
    assert_eq!(heard.words(), expected);
}

/// Virt-handler writes them to a disk, and answers at a port.
fn metrics_of_the_host(pod: &Guest, domain: &Value) {
    let private = in_pod(pod, "kubevirt-private");
    let disk = fs::read(private.join("downwardapi-disks/vhostmd0")).expect("it is there");
    assert!(disk.starts_with(b"mvbd") && disk.len() == 256 << 10);
    let channel = private.join("downwardmetrics-channel/downwardmetrics.sock");
    UnixStream::connect(channel).expect("the port has a socket");
    assert_eq!(
        domain["Spec"]["Devices"]["Disks"][0]["Alias"]["Name"],
        "metrics"
    );
}

/// There is no machine, and nothing of the host is open.
fn before_the_machine(pod: &Guest, handler: &mut Handler) {
    assert_eq!(handler.domain(), json!(null));
    handler.ask("Ping").is_done();
    handler
        .ask("PauseVirtualMachine")
        .is_refused("Domain not found.");
    handler
        .ask("MigrateVirtualMachine")
        .is_refused("cannot migrate");
    assert_eq!(handler.ask("Exec").status, 9, "the call itself fails");
    assert_eq!(handler.ask("NoSuchMethod").status, 12);
    assert_eq!(handler.ask("GetFilesystems").is_done().text, "[]");
    let monitor = Process::new(pod.pid());
    let children = monitor.children().into_iter().map(|child| {
        let pid = child.parse().ok().and_then(rustix::process::Pid::from_raw);
        Process::new(pid.expect("a process"))
    });
    let children: Vec<_> = children.collect();
    for child in &children {
        let open = child.descriptors();
        // A process that has only just begun still has the monitor's standard input.
        let mut devices = open.iter().filter(|path| path.starts_with("/dev/"));
        assert!(devices.all(|path| path == "/dev/null"), "{open:?}");
    }
    let expected = [
        "podvisor-make",
        "podvisor-notify",
        "podvisor-open",
        "qemu-kvm",
        "virt-launcher",
    ];
    // A process names itself, which may come after the launcher's first answers.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut names: Vec<_> = children.iter().map(Process::name).collect();
        names.sort();
        if names == expected {
            break;
        }
        assert!(Instant::now() < deadline, "{names:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A user's console, the next one, and the log.
fn consoles(pod: &Guest) {
    for _ in 0..2 {
        let lines = BufReader::new(handler::console(pod)).lines();
        let mut lines = lines.map_while(Result::ok);
        assert!(lines.any(|line| line.contains("TICK")), "the guest writes");
    }
    let log = in_pod(
        pod,
        &format!("kubevirt-private/{}/virt-serial0-log", handler::UID),
    );
    let log = fs::read_to_string(log).expect("a log");
    assert!(log.contains("TICK"), "{log}");
}

/// Who asks for counters, and who asks for something else.
fn prometheus(port: u16) {
    let answer = http(port, "GET /metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let vcpu = "\nkubevirt_vmi_vcpu_seconds_total{id=\"0\",name=\"testvm\",namespace=\"default\"} ";
    assert!(answer.contains(vcpu), "{answer}");
    // One says nothing, and others do not wait for it.
    let _silent = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let answer = http(port, "DELETE /metrics");
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

/// The whole answer to a request.
fn http(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    write!(stream, "{request} HTTP/1.1\r\nHost: vm\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// Those who look at the machine by `podvisor ctl` in the pod.
fn people(pod: &Guest) {
    let mut control = Control::connect(&in_pod(pod, "podvisor/testvm.sock"));
    assert_eq!(control.status(), "paused");
    assert!(control.stats()["vcpuTimeNs"].is_array());
    let file = json!({"path": "/etc/passwd"});
    let reply = control.call(json!({"command": "status", "open": file}));
    let causes = reply["error"]["causes"].to_string();
    assert!(causes.contains("no file is opened"), "{reply}");
}

fn many_clients(pod: &Guest) {
    let mut handlers: Vec<_> = (0..20).map(|_| Handler::connect(pod)).collect();
    for handler in &mut handlers {
        handler.ask("Ping").is_done();
        assert!(
            handler
                .ask("GetDomainStats")
                .is_done()
                .text
                .contains("Vcpu")
        );
    }
}

/// Every process of ours but the machine's.
fn memory(pod: &Guest) {
    let monitor = Process::new(pod.pid());
    let launcher = Process::new(pod.child("virt-launcher"));
    let openers = ["podvisor-open", "podvisor-notify"].map(|name| Process::new(pod.child(name)));
    let pss = |process: &Process| {
        let rollup = process.read("smaps_rollup");
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|number| number.parse::<u64>().ok())
            .expect("a number")
    };
    assert_eq!(monitor.children().len(), 4, "the preparer has ended");
    let sum = pss(&monitor) + pss(&launcher) + openers.iter().map(pss).sum::<u64>();
    assert!(sum <= MEMORY, "{sum} KiB");
}

#[test]
fn how_a_guest_ends_is_told() {
    let (pod, handler, pipe) = running(30, "hello");
    pipe.wait_for("MODIFIED Shutoff/Shutdown");
    delete(pod, handler, &pipe);

    let (pod, handler, pipe) = running(30, "crash how=triple");
    pipe.wait_for("GuestPanicked");
    pipe.wait_for("MODIFIED Shutoff/Crashed");
    delete(pod, handler, &pipe);

    // A reboot is the guest's own affair, unless the VMI says that it ends the machine.
    let (pod, mut handler, pipe) = running(30, REBOOTS);
    let lines = BufReader::new(handler::console(&pod)).lines();
    let boots = lines
        .map_while(Result::ok)
        .filter(|line| line.contains("CRASH"));
    assert_eq!(boots.take(2).count(), 2, "it boots again");
    assert_eq!(pipe.words(), ["ADDED Running/Unknown"]);
    handler.ask("KillVirtualMachine").is_done();
    pipe.wait_for("MODIFIED Shutoff/Destroyed");
    delete(pod, handler, &pipe);

    let pod = start(30);
    let mut handler = Handler::connect(&pod);
    let pipe = Pipe::listen(&pod);
    let mut ends = vmi(REBOOTS);
    ends["spec"]["domain"]["rebootPolicy"] = json!("Terminate");
    start_by(&mut handler, &pipe, &ends);
    pipe.wait_for("MODIFIED Shutoff/Destroyed");
    delete(pod, handler, &pipe);

    let (pod, handler, pipe) = running(30, ENDLESS);
    kill_process(pod.child("qemu-kvm"), Signal::KILL).expect("it runs");
    pipe.wait_for("MachineFailed");
    pipe.wait_for("MODIFIED Shutoff/Crashed");
    delete(pod, handler, &pipe);

    // The pod's own end: virt-handler is told, and if it does nothing the grace ends.
    let (pod, handler, pipe) = running(1, ENDLESS);
    pod.signal(Signal::TERM);
    pipe.wait_for("MODIFIED Shutoff/Destroyed");
    delete(pod, handler, &pipe);

    // Who asks for a shutdown is answered, and the grace begins.
    let network = Namespace::new("later");
    handler::prepare_nic(&network, later::MAC);
    let pod = handler::pod_in(&network, 30).start();
    wait_until_ready(&pod);
    let mut first = vmi(later::CMDLINE);
    handler::add_nic(&mut first, "", "up");
    let mut handler = Handler::connect(&pod);
    let late = handler.hurry("SyncVirtualMachine", vmi_request(&first));
    assert_eq!(late, LATE);
    let pipe = Pipe::listen(&pod);
    start_by(&mut handler, &pipe, &first);
    assert_eq!(pipe.words().len(), 1, "it was made once");
    without_an_agent(&mut handler);
    nobody_else_finds_the_port(&pod);
    later::disks_come_and_go(&pod, &mut handler, &pipe);
    later::container_disks_come(&pod, &mut handler, &pipe);
    later::block_devices_grow(&pod, &mut handler, &pipe);
    later::nics_come_and_go(&pod, &network, &mut handler, &pipe);
    dumps(&pod, &mut handler, &pipe);
    handler.ask("ShutdownVirtualMachine").is_done();
    let metadata = &handler.domain()["Spec"]["Metadata"]["KubeVirt"]["GracePeriod"];
    assert_eq!(metadata["DeletionGracePeriodSeconds"], 30);
    assert!(metadata["DeletionTimestamp"].is_string(), "{metadata}");
    handler.ask("KillVirtualMachine").is_done();
    pipe.wait_for("MODIFIED Shutoff/Destroyed");
    delete(pod, handler, &pipe);
}

/// What is asked of a guest that has no agent is answered at once.
fn without_an_agent(handler: &mut Handler) {
    assert_eq!(handler.json("GetGuestInfo"), json!({}));
    assert_eq!(handler.json("GetUsers"), json!([]));
    assert_eq!(handler.exec("/bin/true", &[], 5).0, CANNOT);
    assert_eq!(handler.guest_ping(5), CANNOT);
    handler.freeze(0).is_refused("not connected");
    let thaw = handler.ask("UnfreezeVirtualMachine");
    thaw.is_refused("not connected");
    let channel = "/Spec/Devices/Channels/0/Target";
    let target = json!({"Name": "org.qemu.guest_agent.0", "State": "disconnected"});
    assert_eq!(handler.domain().pointer(channel), Some(&target));
}

/// Where the volume is that virt-handler mounts for it, and nowhere else. An older one goes, since there is room for one.
fn dumps(pod: &Guest, handler: &mut Handler, pipe: &Pipe) {
    let place = "/Spec/Metadata/KubeVirt/MemoryDump";
    let path = "kubevirt/hotplug-disks/dumps/testvm-dumps-1.memory.dump";
    let older = ["testvm-dumps-0.memory.dump", "notes"]
        .map(|name| in_pod(pod, &format!("kubevirt/hotplug-disks/dumps/{name}")));
    for file in &older {
        fs::write(file, "").expect("writable");
    }
    handler.dump(&format!("/var/run/{path}")).is_done();
    pipe.wait_for_value(&format!("{place}/Completed"), true, 0);
    let domain = handler.domain();
    let told = domain.pointer(place).expect("a dump");
    assert_eq!(told["Failed"], false, "{told}");
    assert_eq!(told["FileName"], "testvm-dumps-1.memory.dump");
    let dump = fs::read(in_pod(pod, path)).expect("a file");
    assert!(
        dump.starts_with(b"\x7fELF") && dump.len() > 60 << 20,
        "{}",
        dump.len()
    );
    assert_eq!(domain["Status"]["Status"], "Running");
    assert_eq!(older.map(|file| file.exists()), [false, true]);
    let events = pipe.words().len();
    handler
        .dump("/var/run/kubevirt-private/x.memory.dump")
        .is_done();
    pipe.wait_for_value(&format!("{place}/Failed"), true, events);
    assert!(!in_pod(pod, "kubevirt-private/x.memory.dump").exists());
}

fn nobody_else_finds_the_port(pod: &Guest) {
    let directory = in_pod(pod, &format!("kubevirt-private/{}", handler::UID));
    assert!(directory.join("virt-serial0").exists());
    assert!(!directory.join("agent").exists());
}

#[test]
fn what_cannot_be_is_told_with_its_field() {
    // Nothing has begun: the pod just ends.
    let mut pod = start(30);
    let mut handler = Handler::connect(&pod);
    assert_eq!(handler.exec("/bin/true", &[], 5).0, CANNOT);
    pod.signal(Signal::TERM);
    pod.exits_with(0);

    // A hook sidecar that changes what is not there.
    let pod = handler::pod(30, Vec::new()).arg("--hook-sidecars=1");
    let pod = pod.start();
    wait_until_ready(&pod);
    let _sidecar = Sidecar::listen(&pod, "smbios", &["OnDefineDomain"], |_| ());
    let mut handler = Handler::connect(&pod);
    let pipe = Pipe::listen(&pod);
    let answer = handler.cmd("SyncVirtualMachine", vmi_request(&vmi(ENDLESS)));
    answer.is_refused("hook sidecar \"smbios\"");
    pipe.wait_for_message("StartFailed", "libvirt's XML");
    pipe.wait_for("ADDED Shutoff/Crashed");
    delete(pod, handler, &pipe);

    let pod = start(30);
    let mut handler = Handler::connect(&pod);
    let pipe = Pipe::listen(&pod);
    handler
        .cmd("SyncVirtualMachine", Bytes::from_static(b"\x0a\x01"))
        .is_refused("buffer underflow");
    // What may come yet is asked for again.
    let mut later = vmi(ENDLESS);
    let path = "/spec/domain/firmware/kernelBoot/container/kernelPath";
    *later.pointer_mut(path).expect("a kernel") = json!("/boot/later");
    let answer = handler.cmd("SyncVirtualMachine", vmi_request(&later));
    answer.is_refused("/var/run/kubevirt/container-disks/kernel-boot/later");
    // As often as it is asked, with the same answer: nothing is left of the attempt before.
    let mut later = vmi(ENDLESS);
    later["spec"]["networks"] = json!([{"name": "red", "pod": {}}]);
    let interface = json!([{"name": "red", "masquerade": {}}]);
    later["spec"]["domain"]["devices"]["interfaces"] = interface;
    let mut refused = || {
        let answer = handler.cmd("SyncVirtualMachine", vmi_request(&later));
        answer.is_refused("NIC \"red\"");
        answer
    };
    assert_eq!(refused(), refused());
    assert_eq!(handler.domain(), json!(null));
    let mut wrong = vmi(ENDLESS);
    wrong["spec"]["domain"]["cpu"]["cores"] = json!(100_000);
    let answer = handler.cmd("SyncVirtualMachine", vmi_request(&wrong));
    answer.is_refused("spec.domain.cpu");
    pipe.wait_for("StartFailed");
    pipe.wait_for("ADDED Shutoff/Crashed");
    delete(pod, handler, &pipe);
}

/// A pod whose launcher is killed is no pod any more: the machine ends with it.
#[test]
fn nothing_outlives_its_launcher() {
    let (mut pod, _, _pipe) = running(30, ENDLESS);
    let vm = Process::new(pod.child("qemu-kvm"));
    kill_process(pod.child("virt-launcher"), Signal::KILL).expect("it runs");
    pod.exits_with(2);
    while !vm.threads().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
}
