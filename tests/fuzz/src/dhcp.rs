//! DHCPv4: requests of the guest, and leases that a pod's network suggests.

use std::net::Ipv4Addr;

use devices::virtio::net::Answer;
use devices::virtio::net::dhcp::{DhcpLease, DhcpOptions, DhcpResponder};
use smoltcp::wire::{DhcpPacket, EthernetFrame, Ipv4Packet, UDP_HEADER_LEN, UdpPacket};

use crate::input::Input;

pub(crate) const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
/// Longest answer, bytes: what the device has room for.
const MAX_ANSWER: usize = 1514;
const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 75, 10);

/// The lease of a usual pod.
pub(crate) fn plain_lease() -> DhcpLease {
    DhcpLease {
        address: Ipv4Addr::new(10, 0, 0, 2),
        prefix_len: 24,
        server: SERVER,
        router: Some(Ipv4Addr::new(10, 0, 0, 1)),
        routes: vec![(Ipv4Addr::new(10, 1, 0, 0), 16, Ipv4Addr::new(10, 0, 0, 1))],
        dns: vec![Ipv4Addr::new(10, 255, 255, 53)],
        hostname: Some("vm".into()),
        domain: Some("cluster.local".into()),
        search: vec!["cluster.local".into()],
        mtu: 1500,
        options: DhcpOptions::default(),
        any_client: false,
    }
}

/// Answers a frame. The first byte says what lease there is, and which protocol is spoken.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.u8();
    if kind & 2 != 0 {
        return crate::dhcpv6::run(kind, &mut input);
    }
    let lease = match kind & 1 {
        0 => plain_lease(),
        _ => lease(&mut input),
    };
    let Ok(responder) = DhcpResponder::new(&lease, GUEST) else {
        return;
    };
    let frame = match input.u8() & 1 {
        0 => input.take(2048).to_vec(),
        _ => wrap(input.take(1400)),
    };
    answered(
        |out| responder.answer(&frame, out),
        |answer| check(answer, &lease),
    );
}

/// Has a request answered, into as much room as the device has, into one byte less than the answer
/// needs, and twice.
pub(crate) fn answered(answer: impl Fn(&mut [u8]) -> Answer, check: impl Fn(&[u8])) {
    let mut out = [0xaa; MAX_ANSWER + 64];
    let Answer::Frame(len) = answer(&mut out[..MAX_ANSWER]) else {
        return;
    };
    assert!(len <= MAX_ANSWER && out[MAX_ANSWER..] == [0xaa; 64]);
    check(&out[..len]);
    let mut again = [0x55; MAX_ANSWER];
    assert_eq!(answer(&mut again), Answer::Frame(len));
    assert_eq!(out[..len], again[..len], "left over from what was there");
    let mut short = [0; MAX_ANSWER];
    assert_eq!(answer(&mut short[..len - 1]), Answer::Silence);
}

fn lease(input: &mut Input<'_>) -> DhcpLease {
    let address = |input: &mut Input<'_>| Ipv4Addr::from(input.u32());
    let routes = (0..input.u8()).map(|_| (address(input), input.u8(), address(input)));
    let routes = routes.collect();
    DhcpLease {
        address: address(input),
        prefix_len: input.u8(),
        server: SERVER,
        router: (input.u8() & 1 != 0).then(|| address(input)),
        routes,
        dns: (0..input.u8()).map(|_| address(input)).collect(),
        hostname: (input.u8() & 1 != 0).then(|| name(input)),
        domain: (input.u8() & 1 != 0).then(|| name(input)),
        search: (0..input.below(16)).map(|_| name(input)).collect(),
        mtu: input.u16(),
        options: options(input),
        any_client: input.u8() & 1 != 0,
    }
}

pub(crate) fn name(input: &mut Input<'_>) -> String {
    let len = usize::from(input.u8());
    String::from_utf8_lossy(input.take(len)).into_owned()
}

fn options(input: &mut Input<'_>) -> DhcpOptions {
    DhcpOptions {
        tftp_server_name: (input.u8() & 1 != 0).then(|| name(input)),
        boot_file_name: (input.u8() & 1 != 0).then(|| name(input)),
        ntp_servers: (0..input.u8())
            .map(|_| Ipv4Addr::from(input.u32()))
            .collect(),
        private_options: (0..input.below(8))
            .map(|_| (input.u8(), name(input)))
            .collect(),
    }
}

/// A broadcast of a DHCP client around `message`.
fn wrap(message: &[u8]) -> Vec<u8> {
    let udp = (UDP_HEADER_LEN + message.len()) as u16;
    let mut frame = vec![0xff; 6];
    frame.extend(GUEST);
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend((20 + udp).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    frame.extend([0, 68, 0, 67]);
    frame.extend(udp.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(message);
    frame
}

/// An answer is a whole packet to the guest, with right checksums, that offers its address.
fn check(answer: &[u8], lease: &DhcpLease) {
    let frame = EthernetFrame::new_checked(answer).expect("Ethernet");
    let to = frame.dst_addr();
    assert!(to.is_broadcast() || to.0 == GUEST || lease.any_client);
    let ip = Ipv4Packet::new_checked(frame.payload()).expect("IPv4");
    assert!(ip.verify_checksum());
    assert_eq!(ip.src_addr(), lease.server);
    let udp = UdpPacket::new_checked(ip.payload()).expect("UDP");
    assert!(udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
    assert_eq!((udp.src_port(), udp.dst_port()), (67, 68));
    let dhcp = DhcpPacket::new_checked(udp.payload()).expect("DHCP");
    assert!(dhcp.client_hardware_address().0 == GUEST || lease.any_client);
    let kind = dhcp.options().find(|option| option.kind == 53);
    let address = match kind.map(|option| option.data) {
        // OFFER, and ACK of a request.
        Some([2]) => lease.address,
        Some([5]) if !dhcp.your_ip().is_unspecified() => lease.address,
        Some([5 | 6]) => Ipv4Addr::UNSPECIFIED,
        kind => panic!("an answer of type {kind:?}"),
    };
    assert_eq!(dhcp.your_ip(), address);
}
