//! The IPv6 answers given to the guest inside the virtio-net transmit path: DHCPv6 (RFC 8415) and
//! router advertisements (RFC 4861).
//!
//! One guest, one address: the server keeps no state. Advertisements say that addresses come by
//! DHCPv6 (M and O), name the router and the MTU, and hold no prefix to make addresses from, since
//! the network forwards to the leased address only.

mod message;
mod options;
mod router;

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IPV6_HEADER_LEN, IpProtocol, Ipv6Packet, Ipv6Repr, UDP_HEADER_LEN, UdpPacket,
};

pub(super) use self::message::MAX_OPTIONS;
pub(super) use self::router::ROUTER_SOLICITATION;
use super::answer::{Answer, LeaseError};
use super::names;

/// Where DHCPv6 servers listen.
pub(super) const DHCP_SERVER_PORT: u16 = 547;
const DHCP_CLIENT_PORT: u16 = 546;

const NETWORK_LEN: usize = ETHERNET_HEADER_LEN + IPV6_HEADER_LEN;
const HEADERS_LEN: usize = NETWORK_LEN + UDP_HEADER_LEN;

/// What the guest is told about its IPv6 network, by DHCPv6 and by router advertisements. Leases
/// last 999 days, as KubeVirt's do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ipv6Lease {
    /// The guest's address.
    pub address: Ipv6Addr,
    /// Prefix length of the subnet, 0 to 128; advertised as on the link.
    pub prefix_len: u8,
    /// MAC address of the gateway, which is the DHCPv6 server (its DUID) and the guest's router. The
    /// router's link-local address follows from it as on Linux (RFC 4291, appendix A).
    pub gateway_mac: [u8; 6],
    /// Name servers.
    pub dns: Vec<Ipv6Addr>,
    /// Domain search list.
    pub search: Vec<String>,
    /// MTU of the link, bytes.
    pub mtu: u16,
    /// Answer router solicitations too: for a network without a router that does (masquerade).
    pub router_advertisements: bool,
}

fn encode(lease: &Ipv6Lease) -> Result<Vec<u8>, LeaseError> {
    let search = names::search_list(&lease.search)?;
    Ok(options::encode(lease.gateway_mac, &lease.dns, &search))
}

/// Bytes that the fixed options take in an answer, [`MAX_OPTIONS`] at most.
pub(super) fn encoded_len(lease: &Ipv6Lease) -> Result<usize, LeaseError> {
    encode(lease).map(|options| options.len())
}

/// Answers one guest's DHCPv6 client and router solicitations.
#[derive(Clone, Debug)]
pub struct Ipv6Responder {
    address: Ipv6Addr,
    prefix_len: u8,
    gateway_mac: EthernetAddress,
    /// The gateway's link-local address.
    gateway: Ipv6Addr,
    mtu: u16,
    is_router: bool,
    /// Encoded options of every DHCPv6 answer: server identifier, name servers, search list.
    options: Vec<u8>,
}

impl Ipv6Responder {
    /// A responder that gives out `lease`.
    pub fn new(lease: &Ipv6Lease) -> Result<Self, LeaseError> {
        if lease.prefix_len > 128 {
            return Err(LeaseError::Prefix(lease.prefix_len));
        }
        let options = encode(lease)?;
        if options.len() > MAX_OPTIONS {
            return Err(LeaseError::TooLong(options.len()));
        }
        Ok(Self {
            address: lease.address,
            prefix_len: lease.prefix_len,
            gateway_mac: EthernetAddress(lease.gateway_mac),
            gateway: link_local(lease.gateway_mac),
            mtu: lease.mtu,
            is_router: lease.router_advertisements,
            options,
        })
    }

    /// Whether router solicitations are answered.
    pub fn is_router(&self) -> bool {
        self.is_router
    }

    /// Answers the Ethernet frame `frame`, a DHCPv6 client's message, into `out`.
    pub fn answer_dhcp(&self, frame: &[u8], out: &mut [u8]) -> Answer {
        let Some((client, udp)) = self.unwrap(frame, IpProtocol::Udp) else {
            return Answer::Pass;
        };
        if client.ip.is_unspecified() {
            return Answer::Silence;
        }
        // The checksum is not looked at: a guest that offloads it leaves it unfinished.
        let payload = match UdpPacket::new_checked(udp) {
            Ok(udp) if udp.dst_port() == DHCP_SERVER_PORT => udp.payload(),
            _ => return Answer::Pass,
        };
        let Some(body) = out.get_mut(HEADERS_LEN..) else {
            return Answer::Silence;
        };
        match self.answer_message(payload, body) {
            Answer::Frame(len) => {
                let len = UDP_HEADER_LEN + len;
                self.emit_headers(client, IpProtocol::Udp, len, 64, out);
                let mut udp = UdpPacket::new_unchecked(&mut out[NETWORK_LEN..NETWORK_LEN + len]);
                udp.set_src_port(DHCP_SERVER_PORT);
                udp.set_dst_port(DHCP_CLIENT_PORT);
                udp.set_len(len as u16);
                udp.fill_checksum(&self.gateway.into(), &client.ip.into());
                Answer::Frame(NETWORK_LEN + len)
            }
            other => other,
        }
    }

    /// The sender and what its packet carries, if that is `protocol`, without extension headers, for
    /// everybody or us, and from a link-local address or none.
    fn unwrap<'a>(&self, frame: &'a [u8], protocol: IpProtocol) -> Option<(Client, &'a [u8])> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        if frame.ethertype() != EthernetProtocol::Ipv6 {
            return None;
        }
        let ip = Ipv6Packet::new_checked(frame.payload()).ok()?;
        let (from, to) = (ip.src_addr(), ip.dst_addr());
        let ours = ip.version() == 6
            && ip.next_header() == protocol
            && (to.is_multicast() || to == self.gateway)
            && (from.is_unicast_link_local() || from.is_unspecified());
        let client = Client {
            mac: frame.src_addr(),
            ip: from,
        };
        ours.then_some((client, ip.payload()))
    }

    /// Ethernet and IPv6 headers of an answer with a payload of `len` bytes, for which `out` has
    /// room.
    fn emit_headers(
        &self,
        to: Client,
        next_header: IpProtocol,
        len: usize,
        hop_limit: u8,
        out: &mut [u8],
    ) {
        EthernetRepr {
            src_addr: self.gateway_mac,
            dst_addr: to.mac,
            ethertype: EthernetProtocol::Ipv6,
        }
        .emit(&mut EthernetFrame::new_unchecked(&mut *out));
        Ipv6Repr {
            src_addr: self.gateway,
            dst_addr: to.ip,
            next_header,
            payload_len: len,
            hop_limit,
        }
        .emit(&mut Ipv6Packet::new_unchecked(
            &mut out[ETHERNET_HEADER_LEN..],
        ));
    }
}

/// Who asks, or everybody.
#[derive(Clone, Copy, Debug)]
struct Client {
    mac: EthernetAddress,
    ip: Ipv6Addr,
}

impl Client {
    /// All nodes of the link.
    const ALL: Self = Self {
        mac: EthernetAddress([0x33, 0x33, 0, 0, 0, 1]),
        ip: Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
    };
}

/// The address that Linux gives to an interface with this MAC address.
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        pair(a ^ 2, b),
        pair(c, 0xff),
        pair(0xfe, d),
        pair(e, f),
    )
}

/// For packet builders: all checksums are ours to make.
fn checksums() -> ChecksumCapabilities {
    ChecksumCapabilities::default()
}

#[cfg(test)]
mod tests;
