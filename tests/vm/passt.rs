//! A guest behind passt, in a pod without any capability.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use podvisor_tests::echo::serve_dns;
use podvisor_tests::image;
use podvisor_tests::netns::{DNS, GATEWAY, POD_ADDRESS, PodNetwork};
use podvisor_tests::proc::Process;
use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Nic, Vmi};
use podvisor_tests::{PATIENCE, host};
use rustix::process::Signal;

/// Few: without offloads each packet costs a guest whose kernel is interpreted some 30 ms.
const BYTES: usize = 256 << 10;
const TO_GUEST: u16 = 5001;
const FROM_GUEST: u16 = 5002;
/// What our name server says of every name.
const ANSWERS: [&str; 2] = ["192.0.2.77", "2001:db8::77"];

fn vmi(name: &str) -> Vmi {
    let ports = format!("[{{port: {TO_GUEST}}}]");
    Vmi::new(name).nic(Nic::new("passt").field("ports", &ports))
}

/// Runs `ip` for the pod, its arguments as one string.
fn ip(network: &PodNetwork, args: &str) -> String {
    let path = network.pod_path();
    let name = path.file_name().expect("a name").to_string_lossy();
    let mut words = vec!["-n", &name];
    words.extend(args.split_whitespace());
    host("ip", &words)
}

/// The pod's addresses and routes; link-local ones change by themselves.
fn state(network: &PodNetwork) -> [String; 3] {
    ["-o address show scope global", "route", "-6 route"].map(|args| ip(network, args))
}

#[test]
fn linux_behind_passt() {
    let network = PodNetwork::new();
    network.gateway.ip(&format!("address add {DNS}/32 dev lo"));
    network.gateway.ip("link set lo up");
    let before = state(&network);
    let [ipv4, ipv6] = ANSWERS.map(|text| text.parse().expect("an address"));
    serve_dns(&network.gateway, DNS, ipv4, ipv6);
    let listener = network
        .gateway
        .enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, FROM_GUEST)));
    let listener = listener.expect("the gateway listens");

    let run = Run::new(&vmi("passt"));
    let sent = image::filled(&run.dir(), "sent", BYTES);
    let mut guest = run
        .linux("passt")
        .cmdline(&format!(
            "podvisor.name=peer.example podvisor.bytes={BYTES}"
        ))
        .within(network.pod.powerless())
        .start();
    guest.wait_for("GUEST-INIT-READY");
    guest.says(&[
        ("ip", POD_ADDRESS),
        ("prefix", "24"),
        ("gw", GATEWAY),
        ("dns", DNS),
        ("search", "default.svc.cluster.local"),
        ("mtu", "1400"),
    ]);
    guest.wait_for(&format!("RESULT lookup={}", ANSWERS[0]));

    guest.wait_for("LISTENING");
    let address = |port| SocketAddr::new(POD_ADDRESS.parse().expect("an address"), port);
    let (refused, stream) = network.gateway.enter(|| {
        let refused = TcpStream::connect_timeout(&address(TO_GUEST + 9), Duration::from_secs(5));
        (refused, TcpStream::connect(address(TO_GUEST)))
    });
    let refused = refused.expect_err("a port that is not listed").kind();
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    let mut stream = stream.expect("passt listens");
    stream
        .set_write_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    stream
        .write_all(&image::pattern(BYTES))
        .expect("the guest receives");
    drop(stream);
    assert_eq!(guest.result("rx.bytes"), BYTES.to_string());
    assert_eq!(guest.result("rx.sha256"), image::sha256(&sent));

    let (mut stream, _) = listener.accept().expect("the guest connects");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("the guest sends");
    drop(stream);
    assert_eq!(received.len(), BYTES);
    assert!(
        received == image::pattern(BYTES),
        "what the guest sent differs"
    );
    assert_eq!(guest.result("tx.bytes"), BYTES.to_string());

    // The network goes, the machine stays.
    guest.wait_for("WAITING");
    let nic = || guest.control().stats()["devices"]["default"].clone();
    assert_eq!(
        (&nic()["linkUp"], &nic()["dhcpReplies"]),
        (&true.into(), &0.into())
    );
    rustix::process::kill_process(guest.child("passt"), Signal::KILL).expect("passt runs");
    assert_eq!(guest.result("carrier"), "0");
    guest.exits_with(0);
    guest.log_has(&["the network's backend is gone"]);
    assert_eq!(state(&network), before);
}

#[test]
fn passt_ends_with_its_guest() {
    let network = PodNetwork::new();
    let mut guest = Run::new(&vmi("ends").grace_seconds(0))
        .payload("ticker")
        .within(network.pod.powerless())
        .start();
    guest.wait_for("TICK");
    let passt = guest.child("passt");
    guest.control().tell("reset");
    guest.wait_for("TICK");
    guest.signal(Signal::TERM);
    guest.exits_with(4);
    let gone = rustix::process::test_kill_process(passt);
    assert_eq!(gone, Err(rustix::io::Errno::SRCH), "passt has ended");

    let mut guest = Run::new(&vmi("killed"))
        .payload("ticker")
        .within(network.pod.powerless())
        .start();
    guest.wait_for("TICK");
    let passt = guest.child("passt");
    guest.signal(Signal::KILL);
    guest.wait();
    let ended = || rustix::process::test_kill_process(passt).is_err();
    assert!((0..100).any(|_| ended() || {
        thread::sleep(Duration::from_millis(50));
        false
    }));
}

fn name_of(process: &str) -> String {
    let name = std::fs::read_to_string(format!("/proc/{process}/comm"));
    name.unwrap_or_default().trim().to_owned()
}

/// Before there is a machine nobody waits, whatever its start waits for.
#[test]
fn a_signal_ends_a_start_that_waits_for_passt() {
    let network = PodNetwork::new();
    let run = Run::new(&vmi("waits")).payload("sane");
    let never = run.dir().join("never");
    std::fs::write(&never, "#!/bin/sh\nexec sleep 1000\n").expect("a program");
    std::fs::set_permissions(&never, Permissions::from_mode(0o755)).expect("it is ours");
    let mut wrapper = network.pod.powerless();
    let at = wrapper.iter().position(|word| word == "setpriv");
    let at = at.expect("it is there");
    let instead = format!(
        "mount --bind {} /usr/bin/passt; exec \"$0\" \"$@\"",
        never.display()
    );
    wrapper.splice(at..at, ["sh", "-ec", &instead].map(str::to_owned));
    let mut podvisor = run.within(wrapper).start_at_once();
    let waits = Process::new(podvisor.pid());
    while !waits
        .children()
        .iter()
        .any(|child| name_of(child) == "sleep")
    {
        thread::sleep(Duration::from_millis(20));
    }
    let passt = podvisor.child("sleep");
    podvisor.signal(Signal::TERM);
    podvisor.exits_with(4);
    let gone = rustix::process::test_kill_process(passt);
    assert_eq!(gone, Err(rustix::io::Errno::SRCH), "no process is left");
}

#[test]
fn what_passt_cannot_do_is_said() {
    let network = PodNetwork::new();
    let fails = |vmi: &Vmi, wrapper: Vec<String>, words: &[&str]| {
        let mut run = Run::new(vmi)
            .payload("sane")
            .within(wrapper)
            .start_at_once();
        run.exits_with(5);
        run.log_has(words);
    };
    let mut hidden = network.pod.powerless();
    let at = hidden
        .iter()
        .position(|word| word == "setpriv")
        .expect("it is there");
    let hide = "mount --bind /dev/null /usr/bin/passt; exec \"$0\" \"$@\"";
    hidden.splice(at..at, ["sh", "-ec", hide].map(str::to_owned));
    fails(
        &vmi("hidden"),
        hidden,
        &["needs the program passt", "Debian: passt"],
    );

    let low = Vmi::new("low").nic(Nic::new("passt").field("ports", "[{port: 80}]"));
    fails(
        &low,
        network.pod.powerless(),
        &["Port 80", "ip_unprivileged_port_start"],
    );

    ip(&network, "route del default");
    ip(&network, "-6 route del default");
    fails(
        &vmi("alone"),
        network.pod.powerless(),
        &["passt of NIC \"default\" failed"],
    );

    let bridge = Vmi::new("bridge").nic(Nic::new("bridge"));
    fails(
        &bridge,
        network.pod.powerless(),
        &["not permitted", "passt: {}"],
    );
}
