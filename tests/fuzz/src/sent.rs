//! What a guest may send, as another parser of packets sees it.

use devices::virtio::net::testing::GUEST;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, UdpPacket,
};

/// What leaves the guest is under its own address, and nothing that only servers and routers say,
/// as another parser of packets sees it.
pub fn check_sent(frame: &[u8]) {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else {
        return;
    };
    assert_eq!(
        ethernet.src_addr().0,
        GUEST,
        "a frame under another address"
    );
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let Ok(ip) = Ipv4Packet::new_checked(ethernet.payload()) else {
                return;
            };
            let ends = [ip.src_addr(), ip.dst_addr()];
            assert!(!ends.iter().any(|end| end.is_loopback()), "{ends:?}");
            if ip.frag_offset() == 0 {
                check_payload(ip.next_header(), ip.payload(), 68);
            }
        }
        EthernetProtocol::Ipv6 => {
            if let Ok(ip) = Ipv6Packet::new_checked(ethernet.payload()) {
                let ends = [ip.src_addr(), ip.dst_addr()];
                assert!(!ends.iter().any(|end| end.is_loopback()), "{ends:?}");
                check_payload(ip.next_header(), ip.payload(), 546);
            }
        }
        _ => {}
    }
}

fn check_payload(protocol: IpProtocol, payload: &[u8], client_port: u16) {
    match protocol {
        IpProtocol::Udp => {
            if let Ok(udp) = UdpPacket::new_checked(payload) {
                assert_ne!(udp.dst_port(), client_port, "an answer to a DHCP client");
            }
        }
        IpProtocol::Icmpv6 => assert_ne!(payload.first(), Some(&134), "a router advertisement"),
        _ => {}
    }
}
