//! The DHCP answers given to the guest inside the virtio-net transmit path.
//!
//! The guest's DHCPv4 client asks by broadcast; the frame never reaches the network, the answer
//! appears on the receive queue. No socket, no port 67, no privilege, no lease database: there is
//! one client, and its address is known.
//!
//! DISCOVER is offered the lease. REQUEST is acknowledged, whether it chooses, renews or rebinds;
//! one for another address is refused, so that the client starts anew. INFORM is told the
//! configuration. RELEASE and DECLINE change nothing. What another server is asked goes to the
//! network.

mod options;
mod request;

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpHardware, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpFlags, DhcpOpCode, DhcpPacket,
    ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IPV4_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv4Repr, UDP_HEADER_LEN, UdpPacket,
};

use self::request::DhcpRequest;
use super::LEASE_SECONDS;
use super::answer::{Answer, LeaseError, MAX_ANSWER};

/// BOOTP's fixed part and the magic number (RFC 2131, section 2).
const DHCP_HEADER_LEN: usize = 240;
/// Some clients drop answers shorter than BOOTP's 300 bytes (RFC 1542, section 2.1).
const DHCP_MIN_LEN: usize = 300;
const HEADERS_LEN: usize = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN + UDP_HEADER_LEN;
/// Message type, server identifier, lease time and end mark.
const FIXED_OPTIONS: usize = 3 + 6 + 6 + 1;
/// Room for the other options in an answer.
pub(super) const MAX_OPTIONS: usize = MAX_ANSWER - HEADERS_LEN - DHCP_HEADER_LEN - FIXED_OPTIONS;

const OPTION_REQUESTED_IP: u8 = 50;
const OPTION_LEASE_TIME: u8 = 51;
const OPTION_MESSAGE_TYPE: u8 = 53;
const OPTION_SERVER_ID: u8 = 54;
const OPTION_END: u8 = 255;

const DHCP_MAGIC: u32 = 0x6382_5363;

/// Message types (RFC 2132, section 9.6).
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

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

/// Bytes that the configuration takes in an answer, [`MAX_OPTIONS`] at most.
pub(super) fn encoded_len(lease: &DhcpLease) -> Result<usize, LeaseError> {
    options::encode(lease).map(|options| options.len())
}

/// Answers one guest's DHCPv4 client.
#[derive(Clone, Debug)]
pub struct DhcpResponder {
    /// The only client, or any.
    client: Option<EthernetAddress>,
    address: Ipv4Addr,
    server: Ipv4Addr,
    /// Encoded options that tell the configuration.
    options: Vec<u8>,
}

/// Kinds of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    /// OFFER or ACK of the lease.
    Lease(u8),
    /// ACK of an INFORM: the configuration without a lease.
    Configuration,
    /// NAK.
    Refusal,
}

impl Reply {
    fn message_type(self) -> u8 {
        match self {
            Self::Lease(kind) => kind,
            Self::Configuration => ACK,
            Self::Refusal => NAK,
        }
    }
}

impl DhcpResponder {
    /// A responder that gives `lease` to the client with MAC address `client` and to no other,
    /// unless the lease is for any.
    pub fn new(lease: &DhcpLease, client: [u8; 6]) -> Result<Self, LeaseError> {
        let options = options::encode(lease)?;
        if options.len() > MAX_OPTIONS {
            return Err(LeaseError::TooLong(options.len()));
        }
        Ok(Self {
            client: (!lease.any_client).then_some(EthernetAddress(client)),
            address: lease.address,
            server: lease.server,
            options,
        })
    }

    /// Whether a request to this address is for us.
    pub fn serves(&self, to: Ipv4Addr) -> bool {
        to.is_broadcast() || to == self.server
    }

    /// Answers the Ethernet frame `frame` into `out`, for which `MAX_ANSWER` bytes suffice.
    ///
    /// The UDP checksum of the request is not looked at: a guest with checksum offload leaves it
    /// unfinished.
    pub fn answer(&self, frame: &[u8], out: &mut [u8]) -> Answer {
        let request = match DhcpRequest::parse(frame) {
            Some(request) if self.client.is_none_or(|client| client == request.client) => request,
            _ => return Answer::Pass,
        };
        match self.decide(&request) {
            Ok(reply) => self
                .emit(&request, reply, out)
                .map_or(Answer::Silence, Answer::Frame),
            Err(answer) => answer,
        }
    }

    /// RFC 2131, section 4.3.
    fn decide(&self, request: &DhcpRequest) -> Result<Reply, Answer> {
        if request.server.is_some_and(|server| server != self.server) {
            // The client chose another server's offer.
            return Err(Answer::Pass);
        }
        match request.message_type {
            DISCOVER => Ok(Reply::Lease(OFFER)),
            REQUEST if request.wanted().is_none_or(|wanted| wanted == self.address) => {
                Ok(Reply::Lease(ACK))
            }
            REQUEST => Ok(Reply::Refusal),
            INFORM => Ok(Reply::Configuration),
            DECLINE | RELEASE => Err(Answer::Silence),
            _ => Err(Answer::Pass),
        }
    }

    fn emit(&self, request: &DhcpRequest, reply: Reply, out: &mut [u8]) -> Option<usize> {
        let options_len = if reply == Reply::Refusal {
            0
        } else {
            self.options.len()
        };
        let dhcp_len = (DHCP_HEADER_LEN + FIXED_OPTIONS + options_len).max(DHCP_MIN_LEN);
        let out = out.get_mut(..HEADERS_LEN + dhcp_len)?;
        out.fill(0);

        let (ethernet_to, ip_to) = if request.broadcast || reply == Reply::Refusal {
            (EthernetAddress::BROADCAST, Ipv4Addr::BROADCAST)
        } else if request.client_ip.is_unspecified() {
            (request.client, self.address)
        } else {
            (request.client, request.client_ip)
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

        self.emit_dhcp(request, reply, &mut out[HEADERS_LEN..]);

        let mut udp = UdpPacket::new_unchecked(&mut out[ETHERNET_HEADER_LEN + IPV4_HEADER_LEN..]);
        udp.set_src_port(DHCP_SERVER_PORT);
        udp.set_dst_port(DHCP_CLIENT_PORT);
        udp.set_len((UDP_HEADER_LEN + dhcp_len) as u16);
        udp.fill_checksum(&self.server.into(), &ip_to.into());
        Some(HEADERS_LEN + dhcp_len)
    }

    /// Fills `out`, which is zeroed and long enough.
    fn emit_dhcp(&self, request: &DhcpRequest, reply: Reply, out: &mut [u8]) {
        let mut dhcp = DhcpPacket::new_unchecked(&mut out[..DHCP_HEADER_LEN]);
        dhcp.set_opcode(DhcpOpCode::Reply);
        dhcp.set_hardware_type(ArpHardware::Ethernet);
        dhcp.set_hardware_len(6);
        dhcp.set_transaction_id(request.transaction);
        dhcp.set_secs(request.secs);
        if request.broadcast || reply == Reply::Refusal {
            dhcp.set_flags(DhcpFlags::BROADCAST);
        }
        if let Reply::Lease(_) = reply {
            dhcp.set_your_ip(self.address);
        }
        if reply != Reply::Refusal {
            dhcp.set_client_ip(request.client_ip);
            dhcp.set_server_ip(self.server);
        }
        dhcp.set_client_hardware_address(request.client);
        dhcp.set_magic_number(DHCP_MAGIC);
        self.emit_options(reply, &mut out[DHCP_HEADER_LEN..]);
    }

    fn emit_options(&self, reply: Reply, out: &mut [u8]) {
        let mut at = 0;
        let mut push = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        push(&[OPTION_MESSAGE_TYPE, 1, reply.message_type()]);
        push(&[OPTION_SERVER_ID, 4]);
        push(&self.server.octets());
        if let Reply::Lease(_) = reply {
            push(&[OPTION_LEASE_TIME, 4]);
            push(&LEASE_SECONDS.to_be_bytes());
        }
        if reply != Reply::Refusal {
            push(&self.options);
        }
        push(&[OPTION_END]);
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
