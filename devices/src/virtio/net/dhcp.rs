//! The DHCP answers given to the guest inside the virtio-net transmit path.
//!
//! The guest's DHCPv4 client asks by broadcast; the frame never reaches the network, the answer
//! appears on the receive queue. No socket, no port 67, no privilege, no lease database: there is
//! one client, and its address is known.

mod options;

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpHardware, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpFlags, DhcpOpCode, DhcpPacket,
    ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IPV4_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv4Repr, UDP_HEADER_LEN, UdpPacket,
};
use thiserror::Error;

/// Longest frame that [`DhcpResponder::answer`] makes, bytes.
pub const MAX_ANSWER: usize = 1514;

/// Longest request that is looked at, bytes; clients send about 350.
pub const MAX_REQUEST: usize = 1514;

/// Bytes of a frame that [`DhcpResponder::wants`] needs: Ethernet, IPv4 with all options, UDP ports.
pub const PEEK: usize = ETHERNET_HEADER_LEN + 60 + 4;

/// BOOTP's fixed part and the magic number (RFC 2131, section 2).
const DHCP_HEADER_LEN: usize = 240;
/// Some clients drop answers shorter than BOOTP's 300 bytes (RFC 1542, section 2.1).
const DHCP_MIN_LEN: usize = 300;
const HEADERS_LEN: usize = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN + UDP_HEADER_LEN;
/// Room for options in an answer: what fits, less the message type and the end mark.
const MAX_OPTIONS: usize = MAX_ANSWER - HEADERS_LEN - DHCP_HEADER_LEN - 4;

const OPTION_MESSAGE_TYPE: u8 = 53;
const OPTION_SERVER_ID: u8 = 54;
const OPTION_END: u8 = 255;
const DHCP_MAGIC: u32 = 0x6382_5363;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;

/// What the guest's DHCPv4 client is told (RFC 2131, 2132, 3397, 3442).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DhcpLease {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Prefix length of the subnet, 0 to 32.
    pub prefix_len: u8,
    /// Server identifier; the address the answers come from.
    pub server: Ipv4Addr,
    /// Default router.
    pub router: Option<Ipv4Addr>,
    /// Further classless routes: destination, prefix length, gateway.
    pub routes: Vec<(Ipv4Addr, u8, Ipv4Addr)>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Host name.
    pub hostname: Option<String>,
    /// Domain name.
    pub domain: Option<String>,
    /// Domain search list.
    pub search: Vec<String>,
    /// Interface MTU.
    pub mtu: u16,
    /// What the VMI's `dhcpOptions` add.
    pub options: DhcpOptions,
    /// Answer every client behind the NIC, not only the one with the NIC's MAC address. For
    /// networks that hold nothing but the guest (masquerade).
    pub any_client: bool,
}

/// `dhcpOptions` of a VMI's interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DhcpOptions {
    /// `tftpServerName`: option 66 (RFC 2132).
    pub tftp_server_name: Option<String>,
    /// `bootFileName`: option 67 (RFC 2132).
    pub boot_file_name: Option<String>,
    /// `ntpServers`: option 42 (RFC 2132).
    pub ntp_servers: Vec<Ipv4Addr>,
    /// `privateOptions`: numbers from 224 to 254 (RFC 3942) and their values.
    pub private_options: Vec<(u8, String)>,
}

/// A lease that DHCP cannot express.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LeaseError {
    /// A prefix length above 32.
    #[error("Prefix length {0} is above 32")]
    Prefix(u8),
    /// A name that DNS does not allow: a label is empty or has over 63 bytes, or over 253 in all.
    #[error("{0:?} is not a domain name")]
    Name(String),
    /// A private option outside of 224 to 254.
    #[error("DHCP option {0} is not one of the private options 224 to 254")]
    Private(u8),
    /// Everything together does not fit into one unfragmented answer.
    #[error("DHCP options of {0} bytes do not fit into an answer")]
    TooLong(usize),
}

/// Answers one guest's DHCPv4 client.
#[derive(Clone, Debug)]
pub struct DhcpResponder {
    client: EthernetAddress,
    address: Ipv4Addr,
    server: Ipv4Addr,
    /// Encoded options of every answer, without message type and end mark.
    options: Vec<u8>,
}

/// What of a request decides the answer; copied out of it.
struct Request {
    answer_type: u8,
    transaction: u32,
    secs: u16,
    broadcast: bool,
    client_ip: Ipv4Addr,
}

impl DhcpResponder {
    /// A responder that gives `lease` to the client with MAC address `client` and to no other.
    pub fn new(lease: &DhcpLease, client: [u8; 6]) -> Result<Self, LeaseError> {
        let options = options::encode(lease)?;
        if options.len() > MAX_OPTIONS {
            return Err(LeaseError::TooLong(options.len()));
        }
        let client = EthernetAddress(client);
        Ok(Self {
            client,
            address: lease.address,
            server: lease.server,
            options,
        })
    }

    /// Whether a frame that begins with `head` (its first [`PEEK`] bytes, or all of it if it is
    /// shorter) is a DHCP request to look at. Cheap, as every transmitted frame is asked about.
    pub fn wants(&self, head: &[u8]) -> bool {
        let [ethertype_hi, ethertype_lo] = [12, 13].map(|at| head.get(at).copied());
        if (ethertype_hi, ethertype_lo) != (Some(0x08), Some(0x00)) {
            return false;
        }
        let Some(ip) = head.get(ETHERNET_HEADER_LEN..) else {
            return false;
        };
        let [Some(version_ihl), Some(protocol)] = [0, 9].map(|at| ip.get(at).copied()) else {
            return false;
        };
        let port_at = usize::from(version_ihl & 0xf) * 4 + 2;
        protocol == u8::from(IpProtocol::Udp)
            && ip.get(port_at..port_at + 2) == Some(&DHCP_SERVER_PORT.to_be_bytes())
            && ip
                .get(16..20)
                .is_some_and(|to| to == Ipv4Addr::BROADCAST.octets() || to == self.server.octets())
    }

    /// Answers the Ethernet frame `frame` into `out` and returns the answer's length.
    ///
    /// `None` for anything but a DISCOVER or REQUEST of this guest, and if `out` is too short
    /// ([`MAX_ANSWER`] always suffices). The UDP checksum of the request is not looked at: a guest
    /// with checksum offload leaves it unfinished.
    pub fn answer(&self, frame: &[u8], out: &mut [u8]) -> Option<usize> {
        let request = self.parse(frame)?;
        self.emit(&request, out)
    }

    fn parse(&self, frame: &[u8]) -> Option<Request> {
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
        self.parse_dhcp(&DhcpPacket::new_checked(udp.payload()).ok()?)
    }

    fn parse_dhcp(&self, dhcp: &DhcpPacket<&[u8]>) -> Option<Request> {
        let ours = dhcp.opcode() == DhcpOpCode::Request
            && dhcp.hardware_type() == ArpHardware::Ethernet
            && dhcp.hardware_len() == 6
            && dhcp.magic_number() == DHCP_MAGIC
            && dhcp.client_hardware_address() == self.client
            && dhcp.relay_agent_ip().is_unspecified();
        if !ours {
            return None;
        }
        let mut message_type = None;
        for option in dhcp.options() {
            match (option.kind, option.data) {
                (OPTION_MESSAGE_TYPE, &[kind]) => message_type = Some(kind),
                // The client chose another server's offer.
                (OPTION_SERVER_ID, id) if *id != self.server.octets() => return None,
                _ => {}
            }
        }
        let answer_type = match message_type? {
            DISCOVER => OFFER,
            REQUEST => ACK,
            _ => return None,
        };
        Some(Request {
            answer_type,
            transaction: dhcp.transaction_id(),
            secs: dhcp.secs(),
            broadcast: dhcp.flags().contains(DhcpFlags::BROADCAST),
            client_ip: dhcp.client_ip(),
        })
    }

    fn emit(&self, request: &Request, out: &mut [u8]) -> Option<usize> {
        let message_len = DHCP_HEADER_LEN + 3 + self.options.len() + 1;
        let dhcp_len = message_len.max(DHCP_MIN_LEN);
        let out = out.get_mut(..HEADERS_LEN + dhcp_len)?;
        out.fill(0);

        let (ethernet_to, ip_to) = if request.broadcast {
            (EthernetAddress::BROADCAST, Ipv4Addr::BROADCAST)
        } else {
            (self.client, self.address)
        };
        EthernetRepr {
            src_addr: self.server_mac(),
            dst_addr: ethernet_to,
            ethertype: EthernetProtocol::Ipv4,
        }
        .emit(&mut EthernetFrame::new_unchecked(
            &mut out[..ETHERNET_HEADER_LEN],
        ));

        let ip = Ipv4Repr {
            src_addr: self.server,
            dst_addr: ip_to,
            next_header: IpProtocol::Udp,
            payload_len: UDP_HEADER_LEN + dhcp_len,
            hop_limit: 64,
        };
        let mut ip_packet = Ipv4Packet::new_unchecked(&mut out[ETHERNET_HEADER_LEN..]);
        ip.emit(&mut ip_packet, &ChecksumCapabilities::default());

        self.emit_dhcp(request, &mut out[HEADERS_LEN..]);

        let mut udp = UdpPacket::new_unchecked(&mut out[ETHERNET_HEADER_LEN + IPV4_HEADER_LEN..]);
        udp.set_src_port(DHCP_SERVER_PORT);
        udp.set_dst_port(DHCP_CLIENT_PORT);
        udp.set_len((UDP_HEADER_LEN + dhcp_len) as u16);
        udp.fill_checksum(&self.server.into(), &ip_to.into());
        Some(HEADERS_LEN + dhcp_len)
    }

    /// Fills `out`, which is zeroed and long enough.
    fn emit_dhcp(&self, request: &Request, out: &mut [u8]) {
        let mut dhcp = DhcpPacket::new_unchecked(&mut out[..DHCP_HEADER_LEN]);
        dhcp.set_opcode(DhcpOpCode::Reply);
        dhcp.set_hardware_type(ArpHardware::Ethernet);
        dhcp.set_hardware_len(6);
        dhcp.set_transaction_id(request.transaction);
        dhcp.set_secs(request.secs);
        if request.broadcast {
            dhcp.set_flags(DhcpFlags::BROADCAST);
        }
        dhcp.set_client_ip(request.client_ip);
        dhcp.set_your_ip(self.address);
        dhcp.set_server_ip(self.server);
        dhcp.set_client_hardware_address(self.client);
        dhcp.set_magic_number(DHCP_MAGIC);

        let (message_type, rest) = out[DHCP_HEADER_LEN..].split_at_mut(3);
        message_type.copy_from_slice(&[OPTION_MESSAGE_TYPE, 1, request.answer_type]);
        rest[..self.options.len()].copy_from_slice(&self.options);
        rest[self.options.len()] = OPTION_END;
    }

    /// The server has no NIC; its frames come from a locally administered address made of its IP
    /// address.
    fn server_mac(&self) -> EthernetAddress {
        let [a, b, c, d] = self.server.octets();
        EthernetAddress([0x02, 0x00, a, b, c, d])
    }
}

#[cfg(test)]
mod tests;
