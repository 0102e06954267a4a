//! Requests of DHCP clients, and what every answer to the guest has to be.

use std::net::Ipv4Addr;

use smoltcp::wire::{
    DhcpPacket, EthernetFrame, Icmpv6Packet, IpProtocol, Ipv4Packet, Ipv6Packet, UDP_HEADER_LEN,
    UdpPacket,
};

use super::{DhcpLease, GATEWAY, GUEST};

/// The least that a client has to send.
pub fn dhcp_discover() -> Vec<u8> {
    let mut message = vec![0; 244];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[28..34].copy_from_slice(&GUEST);
    message[236..].copy_from_slice(&[99, 130, 83, 99, 53, 1, 1, 255]);
    dhcp_request(&message)
}

/// A broadcast of a DHCP client around `message`.
pub fn dhcp_request(message: &[u8]) -> Vec<u8> {
    let udp = (UDP_HEADER_LEN + message.len()) as u16;
    let mut frame = [&[0xff; 6][..], &GUEST, &[0x08, 0x00, 0x45, 0]].concat();
    frame.extend((20 + udp).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    frame.extend([0, 68, 0, 67]);
    frame.extend(udp.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(message);
    frame
}

/// A DHCP answer is a whole packet to the guest, with right checksums, that offers its address.
pub fn check_dhcp(answer: &[u8], lease: &DhcpLease) {
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

/// A DHCPv6 answer and a router advertisement are whole packets of the gateway with a right checksum;
/// which of the two it is.
pub fn check_ipv6(answer: &[u8]) -> IpProtocol {
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
            assert_eq!((u8::from(icmp.msg_type()), ip.hop_limit()), (134, 255));
        }
        other => panic!("an answer by {other}"),
    }
    ip.next_header()
}

fn whole_options(mut options: &[u8]) {
    while let Some((head, rest)) = options.split_first_chunk::<4>() {
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        options = rest.get(len..).expect("an option ends with the message");
    }
    assert!(options.is_empty(), "half an option");
}
