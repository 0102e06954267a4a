//! Router advertisements.

use smoltcp::time::Duration;
use smoltcp::wire::{
    Icmpv6Packet, Icmpv6Repr, IpProtocol, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr,
    NdiscRouterFlags,
};

use super::{Client, Ipv6Responder, NETWORK_LEN, checksums};
use crate::pod_net::LEASE_SECONDS;
use crate::pod_net::answer::Answer;

/// ICMPv6 type of a router solicitation.
pub(in crate::pod_net) const ROUTER_SOLICITATION: u8 = 133;

/// How long the router stays the default one without another advertisement: the longest that
/// RFC 4861 allows (section 6.2.1).
const ROUTER_LIFETIME: Duration = Duration::from_secs(9000);

/// What neighbour discovery has to have, so that it cannot come from off the link.
const HOP_LIMIT: u8 = 255;

/// Hop limit for the guest's packets, the usual one.
const GUEST_HOP_LIMIT: u8 = 64;

impl Ipv6Responder {
    /// Answers the Ethernet frame `frame`, a router solicitation, into `out`.
    pub fn answer_solicitation(&self, frame: &[u8], out: &mut [u8]) -> Answer {
        let Some((client, payload)) = self.unwrap(frame, IpProtocol::Icmpv6) else {
            return Answer::Pass;
        };
        if payload.first() != Some(&ROUTER_SOLICITATION) {
            return Answer::Pass;
        }
        let to = if client.ip.is_unspecified() {
            Client::ALL
        } else {
            client
        };
        self.emit_advertisement(to, out)
            .map_or(Answer::Silence, Answer::Frame)
    }

    /// Writes an advertisement for all nodes into `out`; its length, if there is room.
    pub fn advertise(&self, out: &mut [u8]) -> Option<usize> {
        self.emit_advertisement(Client::ALL, out)
    }

    fn emit_advertisement(&self, to: Client, out: &mut [u8]) -> Option<usize> {
        let advertisement = Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
            hop_limit: GUEST_HOP_LIMIT,
            flags: NdiscRouterFlags::MANAGED | NdiscRouterFlags::OTHER,
            router_lifetime: ROUTER_LIFETIME,
            reachable_time: Duration::ZERO,
            retrans_time: Duration::ZERO,
            lladdr: Some(self.gateway_mac.into()),
            mtu: Some(u32::from(self.mtu)),
            prefix_info: Some(self.prefix()),
        });
        let len = advertisement.buffer_len();
        let frame = out.get_mut(..NETWORK_LEN + len)?;
        frame.fill(0);
        self.emit_headers(to, IpProtocol::Icmpv6, len, HOP_LIMIT, frame);
        let mut packet = Icmpv6Packet::new_unchecked(&mut frame[NETWORK_LEN..]);
        advertisement.emit(&self.gateway, &to.ip, &mut packet, &checksums());
        Some(NETWORK_LEN + len)
    }

    /// The subnet is on the link; addresses in it are not made up but leased.
    fn prefix(&self) -> NdiscPrefixInformation {
        NdiscPrefixInformation {
            prefix_len: self.prefix_len,
            flags: NdiscPrefixInfoFlags::ON_LINK,
            valid_lifetime: LIFETIME,
            preferred_lifetime: LIFETIME,
            prefix: self.subnet(),
        }
    }
}

/// As that of a lease.
const LIFETIME: Duration = Duration::from_secs(LEASE_SECONDS as u64);
