//! A guest on the network of its pod.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc;

use podvisor_tests::PATIENCE;
use podvisor_tests::image::{self, MIB};
use podvisor_tests::netns::{DNS, GATEWAY, POD_ADDRESS, PodNetwork};
use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Nic, Vmi};
use rustix::process::Signal;
use serde_json::Value;

const BYTES: usize = 16 * MIB;
const MTU: u64 = 1400;
const TO_GUEST: u16 = 5001;
const FROM_GUEST: u16 = 5002;

/// The guest takes over the pod's address, and 16 MiB pass each way through the bridge.
#[test]
fn linux_on_the_pod_network() {
    let network = PodNetwork::new();
    let before = network.pod.snapshot();
    let mac = network.mac();
    let vmi = Vmi::new("net").topology(1, 2, 1).multi_queue();
    let run = Run::new(&vmi.nic(Nic::new("bridge").field("acpiIndex", "3")));
    let sent = image::filled(&run.dir(), "sent", BYTES);
    let mut guest = run
        .linux("hello,demo,nettest")
        .within(network.wrapper())
        .start();

    guest.wait_for("GUEST-INIT-READY");
    guest.says(&[
        ("mac.eth0", mac.as_str()),
        ("acpi_index.eth0", "3"),
        ("mtu.eth0", "1400"),
        ("ip", POD_ADDRESS),
        ("prefix", "24"),
        ("gw", GATEWAY),
        ("dns", DNS),
        ("search", "default.svc.cluster.local"),
        ("mtu", "1400"),
        ("ping", "ok"),
    ]);
    guest.wait_for("LISTENING");

    // Listening before the guest is done receiving, so that it never finds nobody.
    let (listener, mut stream) = network.gateway.enter(|| {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, FROM_GUEST));
        let stream = TcpStream::connect((POD_ADDRESS, TO_GUEST));
        (
            listener.expect("the gateway listens"),
            stream.expect("the guest listens"),
        )
    });
    stream
        .set_write_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    stream
        .write_all(&image::pattern(BYTES))
        .expect("the guest receives");
    drop(stream);
    assert_eq!(guest.result("rx.bytes"), BYTES.to_string());
    assert_eq!(guest.result("rx.sha256"), image::sha256(&sent));

    let stats = guest.control().stats();
    let received = receive(listener);
    assert_eq!(received.len(), BYTES);
    assert!(
        received == image::pattern(BYTES),
        "what the guest sent differs"
    );
    assert_eq!(guest.result("tx.bytes"), BYTES.to_string());

    let mean = average(&stats, "rx");
    assert!(
        mean > 2 * MTU,
        "no segmentation offload: {mean} bytes a packet: {stats}"
    );

    guest.exits_with(0);
    network.pod.assert_is(&before);
}

/// However the guest ends, the pod's network is as before; even a killed launcher's is put right
/// by the next.
#[test]
fn the_network_is_given_back() {
    let network = PodNetwork::new();
    let before = network.pod.snapshot();
    let vmi = Vmi::new("back").network().grace_seconds(0);
    let start = |cmdline: &str| {
        Run::new(&vmi)
            .payload(cmdline)
            .within(network.wrapper())
            .start()
    };

    let mut guest = start("ticker");
    guest.wait_for("TICK");
    assert_ne!(
        network.pod.snapshot(),
        before,
        "the guest has the pod's address"
    );
    guest.signal(Signal::TERM);
    guest.exits_with(4);
    network.pod.assert_is(&before);

    let mut guest = start("crash how=triple");
    guest.exits_with(3);
    network.pod.assert_is(&before);

    let mut guest = start("ticker");
    guest.wait_for("TICK");
    rustix::process::kill_process(guest.vm_pid(), Signal::KILL).expect("the vm process runs");
    guest.exits_with(1);
    network.pod.assert_is(&before);

    let mut guest = start("ticker");
    guest.wait_for("TICK");
    guest.signal(Signal::KILL);
    guest.wait();
    let mut guest = start("sane");
    guest.wait_for("RESULT sane=ok");
    guest.exits_with(0);
    network.pod.assert_is(&before);
}

/// Where `/proc/sys` is read-only, as in most containers, IPv4 is translated all the same; IPv6 is not,
/// and that is said.
#[test]
fn masquerade_with_read_only_settings() {
    let network = PodNetwork::new();
    let before = network.pod.snapshot();
    let mut wrapper = network.wrapper();
    let script =
        "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec \"$@\"";
    wrapper.extend(["sh", "-ec", script, "sh"].map(str::to_owned));
    let vmi = Vmi::new("read-only").nic(Nic::new("masquerade"));
    let mut guest = Run::new(&vmi).payload("ticker").within(wrapper).start();
    guest.wait_for("TICK");
    let rules = network.pod.snapshot()[3].to_string();
    assert!(rules.contains("podvisor-eth0"), "{rules}");
    assert!(!rules.contains("ip6"), "{rules}");
    guest.signal(Signal::TERM);
    guest.signal(Signal::INT);
    guest.exits_with(4);
    guest.log_has(&["the guest has no IPv6", "securityContext.sysctls"]);
    network.pod.assert_is(&before);
}

/// Bytes of an average packet in one direction.
fn average(stats: &Value, direction: &str) -> u64 {
    let nic = &stats["devices"]["default"];
    let count = |what| nic[format!("{direction}{what}")].as_u64();
    let (bytes, packets) = (count("Bytes"), count("Packets"));
    bytes.expect("a counter") / packets.expect("a counter").max(1)
}

fn receive(listener: TcpListener) -> Vec<u8> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = listener
            .accept()
            .and_then(|(mut stream, _)| stream.read_to_end(&mut bytes));
        // Nobody listens any more if the test has failed.
        let _ = sender.send(read.map(|_| bytes));
    });
    let received = receiver.recv_timeout(PATIENCE).expect("the guest sends");
    received.expect("the connection ends well")
}
