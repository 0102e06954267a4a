//! Two guests in two pods of a node, one behind address translation, one with its pod's address and
//! a second card, and what they and a third pod reach of each other.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use podvisor_tests::echo::{self, Seen, ask_tcp, ask_tcp_half_closed, ask_udp};
use podvisor_tests::netns::{DNS, Namespace};
use podvisor_tests::node::Node;
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::{Nic, Vmi};

use crate::forged;

/// Served by guests.
const GUEST_PORT: u16 = 7000;
/// Served by the node and the third pod.
const PORT: u16 = 7001;

const MASQUERADED: [&str; 2] = ["10.244.1.7", "fd00:10:244:1::7"];
const THIRD: [&str; 2] = ["10.244.1.8", "fd00:10:244:1::8"];
const BRIDGED: [&str; 2] = ["10.244.1.9", "fd00:10:244:1::9"];
const INSIDE_GATEWAY: [&str; 2] = ["10.0.2.1", "fd10:0:2::1"];

/// 999 days, in seconds.
const LEASE: &str = "86313600";

/// Bytes of IP and UDP headers.
const HEADERS: [usize; 2] = [28, 48];

#[test]
fn two_guests_and_their_neighbours() {
    let node = Node::new();
    let (left, third, right) = (node.pod(7, 1400), node.pod(8, 9000), node.pod(9, 9000));
    node.join_red(&right, "podb1f51a511f1", 9, 9000);
    echo::serve(&third.namespace, PORT);
    echo::serve(&node.namespace, PORT);
    echo::serve_dns(&node.namespace, DNS, ip(THIRD[0]), ip(THIRD[1]));
    let before = (left.snapshot(), right.snapshot());

    let ports = "[{port: 7000}, {port: 7000, protocol: UDP}]";
    let masquerade = Vmi::new("left").nic(Nic::new("masquerade").field("ports", ports));
    let red = Nic::new("bridge")
        .on("red")
        .field("pciAddress", "\"0000:00:0a.0\"");
    let bridge = Vmi::new("right").nic(Nic::new("bridge")).nic(red);
    let start = |vmi: &Vmi, wrapper: Vec<String>, options: &[&str]| {
        let run = Run::new(vmi).linux("netcheck").cmdline("ipv6.disable=0");
        let run = options.iter().fold(run, |run, option| run.arg(option));
        run.within(wrapper).with_input().start()
    };
    let mut masqueraded = start(&masquerade, left.wrapper(), &[]);
    let mut bridged = start(&bridge, right.wrapper(), &["--mac-spoof-check"]);

    masqueraded.says(&[("ip", "10.0.2.2"), ("gw", "10.0.2.1"), ("mtu", "1400")]);
    masqueraded.wait_for("ECHOING");
    tell(&mut masqueraded, "address6 eth0 fd10:0:2::2/120");
    tell(&mut masqueraded, "route6");
    let route = masqueraded.result("route6");
    assert!(route.contains("via fe80::ff:fe00:0"), "{route}");

    bridged.says(&[("ip", BRIDGED[0]), ("gw", "10.244.1.1"), ("mtu", "9000")]);
    bridged.says(&[("ip", "192.168.7.9"), ("mtu", "9000")]);
    bridged.wait_for("ECHOING");
    tell(&mut bridged, "address6 eth0 fd00:10:244:1::9/64");
    tell(
        &mut bridged,
        "result slot=$(readlink -f /sys/class/net/eth1)",
    );
    assert!(bridged.result("slot").contains("/0000:00:0a.0/virtio"));

    reach_each_other(&mut masqueraded, &mut bridged, &third.namespace);
    only_listed_ports_are_let_in(&third.namespace);
    the_pod_reaches_its_guest(&left.namespace);
    for (family, address) in MASQUERADED.into_iter().enumerate() {
        let seen = guest_asks(&mut masqueraded, "tcp", address, GUEST_PORT, 0);
        assert_eq!(
            seen,
            Some(ip(INSIDE_GATEWAY[family])),
            "hairpin to {address}"
        );
    }
    mtu_end_to_end(&mut masqueraded, &third.namespace, MASQUERADED, 1400);
    mtu_end_to_end(&mut bridged, &third.namespace, BRIDGED, 9000);

    let seen = guest_asks(&mut bridged, "udp", "192.168.7.1", PORT, 64);
    assert_eq!(seen, Some(ip("192.168.7.9")), "the second card");
    let seen = ask_tcp(&node.namespace, socket("192.168.7.9", GUEST_PORT));
    assert_eq!(
        seen.expect("the second card").by_server.ip(),
        ip("192.168.7.1")
    );

    leases_of_both_families(&mut masqueraded);
    for guest in [&mut masqueraded, &mut bridged] {
        names_are_found(guest);
        leases_are_renewed(guest);
        links_go_down_and_up(guest);
    }
    answers_are_counted(&masqueraded);
    forged::foreign_addresses_stay_inside(&mut bridged, &node.namespace);
    for mut guest in [masqueraded, bridged] {
        guest.type_line("done");
        guest.exits_with(0);
    }
    left.assert_is(&before.0);
    right.assert_is(&before.1);
}

/// Behind passt, without any capability, a guest reaches a pod by TCP and UDP of both families, and the
/// pod the guest, under the pod's own addresses.
#[test]
fn a_guest_behind_passt_and_its_neighbour() {
    let node = Node::new();
    let (pod, third) = (node.pod(7, 1400), node.pod(8, 1400));
    echo::serve(&third.namespace, PORT);
    let before = pod.snapshot();
    let ports = "[{port: 7000}, {port: 7000, protocol: UDP}]";
    let vmi = Vmi::new("passt").nic(Nic::new("passt").field("ports", ports));
    let run = Run::new(&vmi).linux("netcheck").cmdline("ipv6.disable=0");
    let mut guest = run.within(pod.powerless()).with_input().start();
    guest.says(&[("ip", MASQUERADED[0]), ("mtu", "1400")]);
    guest.wait_for("ECHOING");
    tell(&mut guest, "address6 eth0 fd00:10:244:1::7/64");

    for family in [0, 1] {
        let (ours, other) = (MASQUERADED[family], THIRD[family]);
        for protocol in ["tcp", "udp"] {
            let seen = patiently(|| guest_asks(&mut guest, protocol, other, PORT, 64));
            assert_eq!(seen, Some(ip(ours)), "{protocol} to {other}");
        }
        let (from, server) = (&third.namespace, socket(ours, GUEST_PORT));
        for seen in [
            patiently(|| ask_tcp(from, server).ok()),
            patiently(|| ask_tcp_half_closed(from, server).ok()),
            patiently(|| ask_udp(from, server, 64).ok()),
        ] {
            let seen = seen.expect("the guest answers");
            assert_eq!(seen.by_server.ip(), ip(other), "to {ours}");
        }
    }
    guest.type_line("done");
    guest.exits_with(0);
    pod.assert_is(&before);
}

/// Debian's passt resets a connection that is opened twice, as a slow guest's is now and then.
fn patiently<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    (0..5).find_map(|_| ask())
}

fn reach_each_other(masqueraded: &mut Guest, bridged: &mut Guest, pod: &Namespace) {
    for family in [0, 1] {
        let (left, right, third) = (MASQUERADED[family], BRIDGED[family], THIRD[family]);
        for (guest, from, other) in [
            (&mut *masqueraded, left, right),
            (&mut *bridged, right, left),
        ] {
            for (to, port) in [(third, PORT), (other, GUEST_PORT)] {
                for protocol in ["tcp", "udp"] {
                    let seen = guest_asks(guest, protocol, to, port, 64);
                    assert_eq!(seen, Some(ip(from)), "{protocol} from {from} to {to}");
                }
            }
        }
        for to in [left, right] {
            let server = socket(to, GUEST_PORT);
            for seen in [
                ask_tcp(pod, server),
                ask_tcp_half_closed(pod, server),
                ask_udp(pod, server, 64),
            ] {
                let Seen {
                    by_server,
                    by_client,
                } = seen.expect("the guest answers");
                assert_eq!(by_server.ip(), ip(third), "to {to}");
                assert_eq!(by_server.port(), by_client.port(), "to {to}");
            }
        }
    }
}

fn only_listed_ports_are_let_in(third: &Namespace) {
    for address in MASQUERADED {
        let server = socket(address, 22);
        for answer in [ask_tcp(third, server), ask_udp(third, server, 64)] {
            let error = answer.expect_err("nobody listens");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}");
        }
    }
}

fn the_pod_reaches_its_guest(pod: &Namespace) {
    for (family, loopback) in ["127.0.0.1", "::1"].into_iter().enumerate() {
        let server = socket(loopback, GUEST_PORT);
        for seen in [ask_tcp(pod, server), ask_udp(pod, server, 64)] {
            let seen = seen.expect("the guest answers");
            assert_eq!(
                seen.by_server.ip(),
                ip(INSIDE_GATEWAY[family]),
                "{loopback}"
            );
        }
        let error = ask_tcp(pod, socket(loopback, 22)).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{loopback}");
    }
}

/// The largest whole packet passes both ways, and the guest knows that a larger one would not.
fn mtu_end_to_end(guest: &mut Guest, third: &Namespace, addresses: [&str; 2], mtu: usize) {
    for (family, address) in addresses.into_iter().enumerate() {
        let largest = mtu - HEADERS[family];
        let seen = guest_asks(guest, "udp", THIRD[family], PORT, largest);
        assert_eq!(
            seen,
            Some(ip(address)),
            "{largest} bytes to {}",
            THIRD[family]
        );
        let seen = guest_asks(guest, "udp", THIRD[family], PORT, largest + 1);
        assert_eq!(seen, None, "{} bytes to {}", largest + 1, THIRD[family]);
        let seen = ask_udp(third, socket(address, GUEST_PORT), largest);
        assert_eq!(
            seen.expect("the guest answers").by_server.ip(),
            ip(THIRD[family])
        );
    }
}

fn names_are_found(guest: &mut Guest) {
    guest.type_line("lookup web.default.svc.cluster.local");
    let server = guest.next_result("lookup");
    assert!(server.starts_with(DNS), "{server}");
    let mut found =
        [guest.next_result("lookup"), guest.next_result("lookup")].map(|text| ip(&text));
    found.sort();
    assert_eq!(found, THIRD.map(ip));
}

/// A guest that knows nothing but DHCP and DHCPv6 has KubeVirt's addresses, and renews them.
fn leases_of_both_families(guest: &mut Guest) {
    for (key, value) in [
        ("lease", LEASE),
        ("prefix", "24"),
        ("server", INSIDE_GATEWAY[0]),
    ] {
        assert_eq!(guest.result(key), value, "{key}");
    }
    guest.type_line("dhcp6 eth0");
    for key in ["dhcp6.ip", "dhcp6.renewed"] {
        assert_eq!(ip(&guest.next_result(key)), ip("fd10:0:2::2"), "{key}");
    }
}

/// DISCOVER, REQUEST and the renewal; SOLICIT, REQUEST and RENEW. Slow clients ask twice. No frame of an honest
/// guest is dropped.
fn answers_are_counted(guest: &Guest) {
    let nic = guest.control().stats()["devices"]["default"].take();
    let count = |what: &str| nic[what].as_u64().expect("a counter");
    assert!(count("dhcpReplies") >= 3, "{nic}");
    assert!(count("dhcpv6Replies") >= 3, "{nic}");
    assert!(count("routerAdvertisements") > 0, "{nic}");
    assert_eq!(
        count("impersonationDrops") + count("spoofDrops"),
        0,
        "{nic}"
    );
    assert_eq!(nic["linkUp"], true);
}

fn leases_are_renewed(guest: &mut Guest) {
    guest.type_line("renew eth0");
    assert_eq!(guest.next_result("lease"), LEASE);
}

fn links_go_down_and_up(guest: &mut Guest) {
    for (up, carrier) in [(false, "0"), (true, "1")] {
        guest.control().set_link("default", up);
        let mut seen = String::new();
        // The guest hears of it by an interrupt, at its own time.
        for _ in 0..50 {
            seen = carrier_of(guest);
            if seen == carrier {
                break;
            }
        }
        assert_eq!(seen, carrier);
    }
    let seen = guest_asks(guest, "tcp", THIRD[0], PORT, 0);
    assert!(seen.is_some(), "the network works again");
}

fn carrier_of(guest: &mut Guest) -> String {
    guest.type_line("carrier eth0");
    guest.next_result("carrier.eth0")
}

/// Lets the guest do something and waits until it is done.
#[track_caller]
fn tell(guest: &mut Guest, line: &str) {
    guest.type_line(line);
    guest.wait_for(&format!("DID {}", line.split(' ').next().unwrap_or(line)));
}

/// What address a server sees when the guest asks it; `None` if there is no answer.
#[track_caller]
fn guest_asks(
    guest: &mut Guest,
    protocol: &str,
    to: &str,
    port: u16,
    size: usize,
) -> Option<IpAddr> {
    guest.type_line(&format!("guest ask {protocol} {to} {port} seen {size}"));
    let answer = guest.next_result("seen");
    answer.split(' ').next()?.parse().ok()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn socket(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}
