//! What a NIC answers by itself: leases of both families, their renewals, the guest's router.

use std::net::Ipv6Addr;

use podvisor_tests::netns::PodNetwork;
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::{Nic, Vmi};

/// KubeVirt's addresses of a masqueraded guest.
const ADDRESS: &str = "10.0.2.2";
const GATEWAY: &str = "10.0.2.1";
const ADDRESS6: &str = "fd10:0:2::2";
/// The link-local address of the gateway, made of its MAC address 02:00:00:00:00:00.
const ROUTER: &str = "fe80::ff:fe00:0";
/// 999 days.
const LEASE: &str = "86313600";
/// The other end of the pod's cable.
const FAR: &str = "fd00:10:244:1::1";

/// A guest that knows nothing but DHCP, DHCPv6 and router advertisements reaches the world by both
/// families, and renews its leases from the server's address and from all servers.
#[test]
fn leases_are_given_and_renewed() {
    let network = PodNetwork::new();
    let mut guest = Run::new(&Vmi::new("answers").nic(Nic::new("masquerade")))
        .linux("answers")
        .cmdline("ipv6.disable=0")
        .cmdline(&format!("podvisor.ping6={FAR}"))
        .within(network.wrapper())
        .start();

    guest.wait_for("GUEST-INIT-READY");
    guest.says(&[
        ("ip", ADDRESS),
        ("prefix", "24"),
        ("gw", GATEWAY),
        ("lease", LEASE),
        ("server", GATEWAY),
    ]);
    let expected: Ipv6Addr = ADDRESS6.parse().expect("an address");
    assert_eq!(address(&guest, "dhcp6.ip"), expected);
    assert_eq!(address(&guest, "dhcp6.renewed"), expected);
    let route = guest.result("route6");
    assert!(route.contains(&format!("via {ROUTER} ")), "{route}");

    guest.wait_for("RENEWING");
    guest.wait_for(&format!("RESULT lease={LEASE}"));
    let stats = guest.control().stats();
    let nic = &stats["devices"]["default"];
    let count = |what: &str| nic[what].as_u64().expect("a counter");
    // DISCOVER, REQUEST and the renewal; SOLICIT, REQUEST and RENEW. Slow clients ask twice.
    assert!(count("dhcpReplies") >= 3, "{nic}");
    assert!(count("dhcpv6Replies") >= 3, "{nic}");
    assert!(count("routerAdvertisements") > 0, "{nic}");
    assert_eq!(
        count("impersonationDrops") + count("spoofDrops"),
        0,
        "{nic}"
    );
    assert_eq!(nic["linkUp"], true);
    assert_eq!(guest.result("ping6"), "ok");
    guest.exits_with(0);
}

#[track_caller]
fn address(guest: &Guest, key: &str) -> Ipv6Addr {
    guest.result(key).parse().expect("an address")
}
