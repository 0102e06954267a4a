//! DHCPv6 and router solicitations.

use std::net::Ipv6Addr;

use devices::virtio::net::ipv6::{Ipv6Lease, Ipv6Responder};
use smoltcp::wire::{EthernetFrame, Icmpv6Packet, IpProtocol, Ipv6Packet, UdpPacket};

use crate::dhcp::{GUEST, answered, name};
use crate::input::Input;

const GATEWAY: [u8; 6] = [0x02, 0, 0, 0, 0, 1];

/// The lease of a usual pod behind masquerade.
pub(crate) fn plain_lease() -> Ipv6Lease {
    Ipv6Lease {
        address: Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2),
        prefix_len: 120,
        gateway_mac: GATEWAY,
        dns: vec![Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x53)],
        search: vec!["cluster.local".into()],
        mtu: 1500,
        router_advertisements: true,
    }
}

fn lease(input: &mut Input<'_>) -> Ipv6Lease {
    let address = |input: &mut Input<'_>| Ipv6Addr::from_bits(input.u64().into());
    Ipv6Lease {
        address: address(input),
        prefix_len: input.u8(),
        gateway_mac: GATEWAY,
        dns: (0..input.u8()).map(|_| address(input)).collect(),
        search: (0..input.below(16)).map(|_| name(input)).collect(),
        mtu: input.u16(),
        router_advertisements: true,
    }
}

/// Answers a frame, or a message around which there is one. See [`crate::dhcp::run`].
pub(crate) fn run(kind: u8, input: &mut Input<'_>) {
    let lease = match kind & 1 {
        0 => plain_lease(),
        _ => lease(input),
    };
    let Ok(responder) = Ipv6Responder::new(&lease) else {
        return;
    };
    let frame = match input.u8() & 3 {
        0 => input.take(2048).to_vec(),
        1 => wrap(
            IpProtocol::Icmpv6,
            &[&[133, 0, 0, 0], input.take(64)].concat(),
        ),
        _ => wrap(IpProtocol::Udp, &udp(input.take(1400))),
    };
    answered(|out| responder.answer_dhcp(&frame, out), check);
    answered(|out| responder.answer_solicitation(&frame, out), check);
}

fn udp(message: &[u8]) -> Vec<u8> {
    let len = (8 + message.len()) as u16;
    let mut udp = vec![0x02, 0x22, 0x02, 0x23];
    udp.extend(len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(message);
    udp
}

/// A frame of the guest to all servers.
fn wrap(protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let from = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    let mut frame = vec![0x33, 0x33, 0, 1, 0, 2];
    frame.extend(GUEST);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([u8::from(protocol), 255]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(payload);
    frame
}

/// An answer is a whole packet of the gateway with a right checksum.
fn check(answer: &[u8]) {
    let frame = EthernetFrame::new_checked(answer).expect("Ethernet");
    assert_eq!(frame.src_addr().0, GATEWAY);
    let ip = Ipv6Packet::new_checked(frame.payload()).expect("IPv6");
    assert!(ip.src_addr().is_unicast_link_local());
    let (from, to) = (ip.src_addr(), ip.dst_addr());
    match ip.next_header() {
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(ip.payload()).expect("UDP");
            assert!(udp.verify_checksum(&from.into(), &to.into()));
            assert_eq!((udp.src_port(), udp.dst_port()), (547, 546));
            whole_options(udp.payload().get(4..).expect("a DHCPv6 header"));
        }
        IpProtocol::Icmpv6 => {
            let icmp = Icmpv6Packet::new_checked(ip.payload()).expect("ICMPv6");
            assert!(icmp.verify_checksum(&from, &to));
            assert_eq!(ip.hop_limit(), 255);
        }
        other => panic!("an answer by {other}"),
    }
}

fn whole_options(mut options: &[u8]) {
    while let Some((head, rest)) = options.split_first_chunk::<4>() {
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        options = rest.get(len..).expect("an option ends with the message");
    }
    assert!(options.is_empty(), "half an option");
}
