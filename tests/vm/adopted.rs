//! What KubeVirt's node agent has prepared, used as its containers use it: by user 107, without any
//! capability.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::Path;

use podvisor_tests::echo::{self, ask_tcp, ask_udp};
use podvisor_tests::netns::{DNS, GATEWAY, PodNetwork};
use podvisor_tests::proc::Process;
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::tshark;
use podvisor_tests::vmi::{Nic, Vmi};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::forged;

/// User and group of KubeVirt's containers, and of the TAPs that its agent makes.
const KUBEVIRT: u32 = 107;
const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
/// Served by the guest and by the pod.
const PORT: u16 = 7000;
/// Packets of a guest.
const CAPTURE: &str = "net.pcapng";

/// Gives the user the device nodes that KubeVirt's device plugin does, the agent's directory, and
/// nothing else.
const BECOME: &str = "
mkdir -p /run/kubevirt-private
mount --bind \"$0\" /run/kubevirt-private
mount -t tmpfs devices /mnt
mknod /mnt/kvm c 10 232
mknod /mnt/tun c 10 200
chown 107:107 /mnt/kvm /mnt/tun /run/podvisor
mount --bind /mnt/kvm /dev/kvm
mount --bind /mnt/tun /dev/net/tun
exec setpriv --reuid 107 --regid 107 --clear-groups --inh-caps=-all --bounding-set=-all \\
    --no-new-privs \"$@\"";

/// A pod's network, and the directory of files that the agent leaves in it.
struct Agent {
    network: PodNetwork,
    files: TempDir,
}

impl Agent {
    fn new() -> Self {
        Self {
            network: PodNetwork::new(),
            files: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// Says what the pod's interface was.
    fn write(&self, text: &str) {
        let file = self.files.path().join("vif-cache-eth0.json");
        fs::write(&file, text).expect("the directory can be written");
        for path in [self.files.path(), &file] {
            chown(path, Some(KUBEVIRT), Some(KUBEVIRT)).expect("root may give files away");
        }
    }

    /// Starts a guest behind `binding`.
    fn start(&self, binding: &str, guest: impl FnOnce(Run) -> Run) -> Guest {
        let run = Run::new(&Vmi::new("agent").nic(Nic::new(binding)).grace_seconds(0));
        chown(run.dir(), Some(KUBEVIRT), Some(KUBEVIRT)).expect("root may give files away");
        let mut wrapper = self.network.wrapper();
        wrapper.extend(["sh", "-ec", BECOME].map(str::to_owned));
        wrapper.push(self.files.path().to_string_lossy().into_owned());
        guest(run).within(wrapper).start()
    }

    fn start_linux(&self, binding: &str, options: &[&str]) -> Guest {
        let linux = |run: Run| run.linux("netcheck").cmdline("ipv6.disable=0");
        let linux = |run| {
            options
                .iter()
                .fold(linux(run), |run, option| run.arg(option))
        };
        self.start(binding, |run| linux(run).with_input())
    }

    /// What `podvisor net show` says of the only NIC.
    fn shown(&self) -> Value {
        let run = Run::with_arguments(["net", "show", "-o", "json"]);
        let mut shown = run.within(self.network.wrapper()).start_at_once();
        shown.exits_with(0);
        let list: Value = serde_json::from_str(&shown.console.text()).expect("JSON");
        list[0].clone()
    }
}

#[test]
fn what_is_not_prepared_is_named() {
    let agent = Agent::new();
    let before = agent.network.pod.snapshot();
    for binding in ["bridge", "masquerade"] {
        let mut guest = agent.start(binding, |run| run.payload("sane"));
        guest.exits_with(5);
        guest.log_has(&[
            "Cannot attach to TAP \"tap0\"",
            "capabilities.add: [NET_ADMIN]",
        ]);
        agent.network.pod.assert_is(&before);
    }
}

#[test]
fn a_masqueraded_guest_needs_no_capability() {
    let agent = Agent::new();
    agent.network.add_tap(KUBEVIRT);
    let pod = &agent.network.pod.namespace;
    pod.ip("address add 10.0.2.1/24 dev k6t-eth0");
    pod.ip("address add fd10:0:2::1/120 dev k6t-eth0 nodad");
    echo::serve(pod, PORT);
    let before = prepared(&agent.network);
    let mac = agent.network.mac();

    let mut guest = agent.start_linux("masquerade", &[]);
    guest.says(&[("ip", "10.0.2.2"), ("gw", "10.0.2.1"), ("mtu", "1400")]);
    guest.wait_for("ECHOING");
    has_no_capability(&guest);
    assert_eq!(mac_of(&mut guest), mac);
    guest.type_line("guest ask tcp 10.0.2.1 7000 seen");
    assert!(guest.next_result("seen").starts_with("10.0.2.2 "));
    let shown = agent.shown();
    assert_eq!(
        (&shown["adopted"], &shown["running"]),
        (&true.into(), &true.into())
    );
    ends(guest);
    assert_eq!(prepared(&agent.network), before);
}

/// The agent's file says what the pod's interface was: the placeholder has no routes, and not
/// always the guest's addresses. The check of addresses knows those of the file, too.
#[test]
fn a_bridged_guest_is_what_the_agents_file_says() {
    let agent = Agent::new();
    agent.network.add_tap(KUBEVIRT);
    agent.network.give_interface_away("02:00:00:00:00:07");
    agent.write(
        r#"{"Name":"eth0",
        "IP":{"IP":"10.244.1.9","Mask":"////AA==","Label":"","Flags":0,"Scope":0,"Peer":null,
            "Broadcast":"","PreferedLft":0,"ValidLft":0,"LinkIndex":0},
        "IPv6":{"Label":"","Flags":0,"Scope":0,"Peer":null,"Broadcast":null,"LinkIndex":0},
        "MAC":"AgAAAAAI","AdvertisingIPAddr":"","AdvertisingIPv6Addr":"",
        "Routes":[
            {"LinkIndex":3,"ILinkIndex":0,"Scope":0,"Dst":null,"Src":"","Gw":"10.244.1.1","Table":254},
            {"LinkIndex":3,"ILinkIndex":0,"Scope":0,"Dst":{"IP":"10.96.0.0","Mask":"//AAAA=="},
                "Src":"","Gw":"10.244.1.1","Table":254}],
        "Mtu":0,"IPAMDisabled":false,"Gateway":"10.244.1.1","Subdomain":""}"#,
    );
    let before = prepared(&agent.network);

    let pcap = format!(
        "--pcap=default={}",
        agent.files.path().join(CAPTURE).display()
    );
    let mut guest = agent.start_linux("bridge", &["--mac-spoof-check", &pcap]);
    guest.says(&[
        ("ip", "10.244.1.9"),
        ("prefix", "24"),
        ("gw", GATEWAY),
        ("routes", "10.96.0.0/12 10.244.1.1 0.0.0.0/0 10.244.1.1"),
        ("dns", DNS),
        ("mtu", "1400"),
        ("server", "169.254.75.10"),
    ]);
    guest.wait_for("ECHOING");
    has_no_capability(&guest);
    assert_eq!(mac_of(&mut guest), "02:00:00:00:00:08");
    let server = SocketAddr::from(([10, 244, 1, 9], PORT));
    let gateway = &agent.network.gateway;
    for seen in [ask_tcp(gateway, server), ask_udp(gateway, server, 64)] {
        let seen = seen.expect("the guest answers").by_server.ip();
        assert_eq!(seen.to_string(), GATEWAY);
    }
    forged::foreign_addresses_stay_inside(&mut guest, gateway);
    let drops = forged::drops(&guest);
    ends(guest);
    what_the_nic_did_is_captured(&agent.files.path().join(CAPTURE), drops);
    assert_eq!(prepared(&agent.network), before);
}

/// tshark reads what became of packets: of requests that the NIC answered, of frames that it dropped, as often as it has
/// counted them, and of those that went on.
#[track_caller]
fn what_the_nic_did_is_captured(capture: &Path, drops: [u64; 2]) {
    let packets = tshark::packets(capture);
    assert!(packets.iter().all(|packet| packet.nic == "default"));
    let count = |is_sent: bool, protocol: &str, comment: &str| {
        let these = packets.iter().filter(|packet| {
            packet.is_sent == is_sent
                && packet.protocols.contains(protocol)
                && packet.comment == comment
        });
        these.count() as u64
    };
    // DISCOVER and REQUEST.
    assert!(
        count(true, ":dhcp", "answered by podvisor: DHCPv4") >= 2,
        "{packets:?}"
    );
    assert!(
        count(false, ":dhcp", "made by podvisor: DHCPv4") >= 2,
        "{packets:?}"
    );
    let server = "dropped: only routers and servers send such packets";
    let spoofed = "dropped: the sender's address is not the NIC's";
    assert_eq!([count(true, "", server), count(true, "", spoofed)], drops);
    assert!(count(true, ":tcp", "") > 0 && count(false, ":tcp", "") > 0);
}

/// Without an IPv4 address in the pod there is no lease, whatever the placeholder has; and a file that is no
/// file of the agent's is an error.
#[test]
fn the_agents_file_may_say_no_or_nothing() {
    let agent = Agent::new();
    agent.network.add_tap(KUBEVIRT);
    agent.network.give_interface_away("02:00:00:00:00:07");
    for (text, address) in [
        (None, Value::from("10.244.1.7")),
        (
            Some(r#"{"MAC":"AgAAAAAH","IPAMDisabled":true}"#),
            Value::Null,
        ),
    ] {
        text.into_iter().for_each(|text| agent.write(text));
        let mut guest = agent.start("bridge", |run| run.payload("ticker"));
        guest.wait_for("TICK");
        let shown = agent.shown();
        assert_eq!(shown["lease"]["address"], address, "{shown}");
        assert_eq!(shown["mac"], Value::from([2, 0, 0, 0, 0, 7].to_vec()));
        guest.signal(Signal::TERM);
        guest.exits_with(4);
        guest.log_has(&["bridge and TAP adopted"]);
    }
    agent.write("{");
    let mut guest = agent.start("bridge", |run| run.payload("sane"));
    guest.exits_with(5);
    guest.log_has(&["/var/run/kubevirt-private is unreadable"]);
}

/// Neither launcher nor vm process has one, nor could get one.
#[track_caller]
fn has_no_capability(guest: &Guest) {
    for process in [guest.pid(), guest.vm_pid()].map(Process::new) {
        assert_eq!(
            process.status("Uid"),
            "107 107 107 107",
            "{}",
            process.name()
        );
        assert_eq!(
            process.status("Gid"),
            "107 107 107 107",
            "{}",
            process.name()
        );
        for set in SETS {
            assert_eq!(process.status(set), "0".repeat(16), "{set}");
        }
    }
}

#[track_caller]
fn mac_of(guest: &mut Guest) -> String {
    guest.type_line("read -r mac < /sys/class/net/eth0/address && result mac=$mac");
    guest.next_result("mac")
}

#[track_caller]
fn ends(mut guest: Guest) {
    guest.type_line("done");
    guest.exits_with(0);
    guest.log_has(&["bridge and TAP adopted"]);
}

/// The pod's interfaces and settings without what follows from a TAP's carrier.
fn prepared(network: &PodNetwork) -> Vec<Value> {
    let mut snapshot = network.pod.snapshot();
    for interface in snapshot[0].as_array_mut().into_iter().flatten() {
        interface["flags"] = Value::Null;
        interface["operstate"] = Value::Null;
    }
    // Routes show the carrier too.
    snapshot.drain(1..3);
    snapshot
}
