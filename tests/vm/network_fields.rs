//! What a VMI says of its interfaces, as the guest and its neighbours see it.

use std::net::{IpAddr, SocketAddr};

use podvisor_tests::echo::{self, ask_tcp, ask_udp};
use podvisor_tests::netns::{DNS, GATEWAY, POD_ADDRESS, PodNetwork};
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::{Nic, Vmi};

use crate::forged;

/// The pod's interface on the network `red`.
const RED: &str = "podb1f51a511f1";
/// Addresses of pod and gateway on it.
const RED_ADDRESS: &str = "192.168.7.7";
const RED_GATEWAY: &str = "192.168.7.1";
/// Served by the guest.
const GUEST_PORT: u16 = 7000;
/// Served by the gateway.
const PORT: u16 = 7001;

/// A guest behind translation with subnets of the VMI's, and a second card without a link at first.
#[test]
fn subnets_addresses_and_the_state_of_links() {
    let network = PodNetwork::new();
    network.add_secondary(RED, 1400);
    let before = network.pod.snapshot();
    let subnets = "{vmNetworkCIDR: 10.11.0.0/16, vmIPv6NetworkCIDR: \"fd99::/112\"}";
    let masquerade = Nic::new("masquerade")
        .pod(subnets)
        .field("macAddress", "\"02:00:00:00:00:21\"")
        .field("model", "virtio")
        .field("tag", "first");
    let red = Nic::new("bridge")
        .on("red")
        .field("macAddress", "\"02:00:00:00:00:22\"")
        .field("state", "down");
    let mut guest = start(&network, &Vmi::new("fields").nic(masquerade).nic(red));

    guest.says(&[("ip", "10.11.0.2"), ("prefix", "16"), ("gw", "10.11.0.1")]);
    guest.wait_for("ECHOING");
    for (card, link, address) in [("eth0", "1", "21"), ("eth1", "0", "22")] {
        guest.type_line(&format!(
            "carrier {card}; read -r mac < /sys/class/net/{card}/address; result mac=$mac"
        ));
        assert_eq!(guest.next_result(&format!("carrier.{card}")), link);
        assert_eq!(
            guest.next_result("mac"),
            format!("02:00:00:00:00:{address}")
        );
    }
    guest.type_line("dhcp6 eth0");
    assert_eq!(ip(&guest.next_result("dhcp6.ip")), ip("fd99::2"));
    // No port is listed: all go to the guest.
    let seen = ask_tcp(&network.gateway, socket(POD_ADDRESS));
    assert_eq!(seen.expect("the guest answers").by_server.ip(), ip(GATEWAY));

    guest.control().set_link("red", true);
    guest.type_line("lease eth1");
    guest.says(&[("ip", RED_ADDRESS)]);
    let seen = ask_udp(&network.gateway, socket(RED_ADDRESS), 64);
    assert_eq!(
        seen.expect("the guest answers").by_server.ip(),
        ip(RED_GATEWAY)
    );
    each_nic_counts(&guest);
    is_shown(&network);
    ends(guest);
    network.pod.assert_is(&before);
}

/// A guest in the pod's place, told all that a lease can tell, and behind translation on a secondary
/// network; it forges frames.
#[test]
fn leases_options_and_translation_on_a_secondary_network() {
    let network = PodNetwork::new();
    network.add_secondary(RED, 9000);
    network
        .pod
        .namespace
        .ip(&format!("route add 10.96.0.0/12 via {GATEWAY}"));
    echo::serve(&network.gateway, PORT);
    let before = network.pod.snapshot();
    let options = "{tftpServerName: boot.example, bootFileName: vm.img, ntpServers: [10.0.0.123], \
        privateOptions: [{option: 240, value: podvisor}]}";
    let bridge = Nic::new("bridge").field("dhcpOptions", options);
    let ports = "[{port: 7000}, {port: 7000, protocol: UDP}]";
    let red = Nic::new("masquerade").on("red").field("ports", ports);
    let vmi = Vmi::new("leases").nic(bridge).nic(red);
    let vmi = vmi.field("hostname", "web-0").field("subdomain", "web");
    let mut guest = start(&network, &vmi);

    let search = "web.default.svc.cluster.local default.svc.cluster.local";
    guest.says(&[
        ("ip", POD_ADDRESS),
        ("routes", "10.96.0.0/12 10.244.1.1 0.0.0.0/0 10.244.1.1"),
        ("dns", DNS),
        ("search", search),
        ("hostname", "web-0"),
        // Option 240 as busybox shows what it does not know.
        ("options", "boot.example vm.img 10.0.0.123 706f647669736f72"),
        ("server", "169.254.75.10"),
    ]);
    guest.says(&[("ip", "10.0.2.2"), ("mtu", "9000"), ("server", "10.0.2.1")]);
    guest.wait_for("ECHOING");

    // The default route is that of the first card.
    guest.type_line("ip route add 192.168.7.0/24 via 10.0.2.1; result route=$?");
    assert_eq!(guest.next_result("route"), "0");
    let (gateway, server) = (&network.gateway, socket(RED_ADDRESS));
    for seen in [ask_tcp(gateway, server), ask_udp(gateway, server, 64)] {
        assert_eq!(
            seen.expect("the guest answers").by_server.ip(),
            ip(RED_GATEWAY)
        );
    }
    guest.type_line(&format!("guest ask tcp {RED_GATEWAY} {PORT} seen"));
    let seen = guest.next_result("seen");
    let (by_server, own_port) = seen.split_once(" from ").expect("an answer");
    assert_eq!(
        by_server,
        format!("{RED_ADDRESS} {own_port}"),
        "its port is kept"
    );
    forged::words_of_servers_and_routers_stay_inside(&mut guest, &network.gateway);
    a_bridge_answers_its_own_card_only(&mut guest);
    ends(guest);
    network.pod.assert_is(&before);
}

/// DHCP requests from another MAC address are the network's, where nobody answers; behind translation any
/// client is answered.
fn a_bridge_answers_its_own_card_only(guest: &mut Guest) {
    for (card, answered) in [("eth0", "no"), ("eth1", "yes")] {
        let ask = format!("udhcpc -i {card} -f -n -q -t 2 -T 2 -s /bin/guest > /tmp/foreign 2>&1");
        guest.type_line(&format!(
            "ip link set {card} down; ip link set {card} address 02:00:00:00:00:66; \
             ip link set {card} up; {ask}; grep -q obtained /tmp/foreign && result foreign=yes || \
             result foreign=no"
        ));
        assert_eq!(guest.next_result("foreign"), answered, "{card}");
    }
}

/// Frames pass both NICs, and are counted where they pass.
fn each_nic_counts(guest: &Guest) {
    let stats = guest.control().stats();
    for name in ["default", "red"] {
        let nic = &stats["devices"][name];
        assert_eq!(nic["linkUp"], true, "{nic}");
        for count in [
            "rxPackets",
            "txPackets",
            "rxBytes",
            "txBytes",
            "dhcpReplies",
        ] {
            assert!(nic[count].as_u64() > Some(0), "{name} {count}: {nic}");
        }
    }
}

fn is_shown(network: &PodNetwork) {
    let run = Run::with_arguments(["net", "show"]).within(network.wrapper());
    let mut shown = run.start_at_once();
    shown.exits_with(0);
    let text = shown.console.text();
    for line in [
        "default (masquerade) on eth0",
        "guest     MAC 02:00:00:00:00:21, MTU 1400, 1 queue pairs, tap0 on k6t-eth0",
        "DHCPv4    10.11.0.2/16 from 10.11.0.1, router 10.11.0.1, DNS 10.96.0.10",
        "DHCPv6    fd99::2/112, router advertisements",
        "restores  eth0 IPv4 forwarding ",
        "red (bridge) on podb1f51a511f1",
        "guest     MAC 02:00:00:00:00:22, MTU 1400, 1 queue pairs, tapb1f51a511f1 on k6t-b1f51a511f1",
        "DHCPv4    192.168.7.7/24 from 169.254.75.11",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
}

fn start(network: &PodNetwork, vmi: &Vmi) -> Guest {
    let run = Run::new(vmi).linux("netcheck").cmdline("ipv6.disable=0");
    run.within(network.wrapper()).with_input().start()
}

#[track_caller]
fn ends(mut guest: Guest) {
    guest.type_line("done");
    guest.exits_with(0);
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn socket(address: &str) -> SocketAddr {
    SocketAddr::new(ip(address), GUEST_PORT)
}
