//! What of a DHCPv4 request decides the answer, copied out of it.

use std::net::Ipv4Addr;

use smoltcp::wire::{
    ArpHardware, DHCP_SERVER_PORT, DhcpFlags, DhcpOpCode, DhcpPacket, EthernetAddress,
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, UdpPacket,
};

use super::{DHCP_MAGIC, OPTION_MESSAGE_TYPE, OPTION_REQUESTED_IP, OPTION_SERVER_ID};

/// A client's request.
#[derive(Clone, Copy, Debug)]
pub(super) struct DhcpRequest {
    pub(super) message_type: u8,
    pub(super) transaction: u32,
    pub(super) secs: u16,
    pub(super) broadcast: bool,
    pub(super) client: EthernetAddress,
    /// The address that the client has, or none.
    pub(super) client_ip: Ipv4Addr,
    pub(super) requested_ip: Option<Ipv4Addr>,
    /// The server that is meant.
    pub(super) server: Option<Ipv4Addr>,
}

impl DhcpRequest {
    /// `None` if the frame is not a request straight from a client.
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        if frame.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        let ip = Ipv4Packet::new_checked(frame.payload()).ok()?;
        let whole = !ip.more_frags() && ip.frag_offset() == 0;
        if ip.version() != 4 || ip.next_header() != IpProtocol::Udp || !whole {
            return None;
        }
        let udp = UdpPacket::new_checked(ip.payload()).ok()?;
        if udp.dst_port() != DHCP_SERVER_PORT {
            return None;
        }
        Self::parse_dhcp(&DhcpPacket::new_checked(udp.payload()).ok()?)
    }

    fn parse_dhcp(dhcp: &DhcpPacket<&[u8]>) -> Option<Self> {
        let request = dhcp.opcode() == DhcpOpCode::Request
            && dhcp.hardware_type() == ArpHardware::Ethernet
            && dhcp.hardware_len() == 6
            && dhcp.magic_number() == DHCP_MAGIC
            && dhcp.client_hardware_address().is_unicast()
            && dhcp.relay_agent_ip().is_unspecified();
        if !request {
            return None;
        }
        let mut message_type = None;
        let mut requested_ip = None;
        let mut server = None;
        for option in dhcp.options() {
            let address = || <[u8; 4]>::try_from(option.data).ok().map(Ipv4Addr::from);
            match (option.kind, option.data) {
                (OPTION_MESSAGE_TYPE, &[kind]) => message_type = Some(kind),
                (OPTION_REQUESTED_IP, _) => requested_ip = address(),
                // Anything but an address names no server.
                (OPTION_SERVER_ID, _) => server = Some(address().unwrap_or(Ipv4Addr::UNSPECIFIED)),
                _ => {}
            }
        }
        Some(Self {
            message_type: message_type?,
            transaction: dhcp.transaction_id(),
            secs: dhcp.secs(),
            broadcast: dhcp.flags().contains(DhcpFlags::BROADCAST),
            client: dhcp.client_hardware_address(),
            client_ip: dhcp.client_ip(),
            requested_ip,
            server,
        })
    }

    /// The address that the client wants to have or to keep, if it says so.
    pub(super) fn wanted(&self) -> Option<Ipv4Addr> {
        let current = Some(self.client_ip).filter(|address| !address.is_unspecified());
        self.requested_ip.or(current)
    }
}
