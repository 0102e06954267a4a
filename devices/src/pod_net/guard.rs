//! What a guest may not send: words of its network's servers and routers, and, if asked for, frames
//! under another MAC address than its own.
//!
//! Always dropped, and counted as impersonation:
//!
//! - UDP to a DHCP client's port, 68 over IPv4 and 546 over IPv6, from whatever port: that is how
//!   servers (67, 547) speak to clients, and clients look at nothing else;
//! - ICMPv6 router advertisements and redirects, and ICMPv4 redirects;
//! - neighbour discovery in fragments, which receivers have to ignore (RFC 6980);
//! - packets to or from loopback addresses, which are on no network (RFC 1122, 3.2.1.3; RFC 4291, 2.5.3): a bridge of
//!   KubeVirt's takes those of IPv4 (`route_localnet`), and the pod's own servers listen there;
//! - first fragments, and packets, whose headers do not show what they carry ([`Stop::Hidden`]), and
//!   headers that go on for more than [`MAX_LOOK`](crate::virtio::net::outgoing::MAX_LOOK) bytes;
//! - frames whose offloaded checksum would be written over any of these headers: the kernel fills in
//!   a checksum where the guest says, after we have looked.
//!
//! All of it below up to four VLAN tags and behind IPv6 extension headers and IPv4 options. A first
//! fragment of IPv4 always has the UDP ports in it; later fragments pass, and come to nothing
//! without the first.
//!
//! With the check of MAC addresses (`--mac-spoof-check`), these are dropped and counted as spoofed:
//! frames with another source than the NIC's address, ARP packets with another sender hardware
//! address, and solicitations and neighbour advertisements whose link-layer address option holds
//! another one.
//!
//! Not caught: packets inside tunnels (IP in IP, GRE, VXLAN, ESP) and other encapsulations (LLC/SNAP,
//! MPLS, PPPoE), which the receiver must be set up for; later fragments that overlap the headers in
//! the first, which receivers must refuse (RFC 5722; Linux does for IPv4 too); IP addresses of
//! others, since bridges and routers in guests are allowed to use several.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::frame::{Bytes, Frame, Network, Payload, Stop};
use crate::tap::HEADER_SIZE;

/// Where DHCP clients listen.
const DHCP_CLIENT: u16 = 68;
const DHCPV6_CLIENT: u16 = 546;

const ICMPV4_REDIRECT: u8 = 5;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Options of neighbour discovery (RFC 4861, section 4.6).
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

/// `virtio_net_hdr.flags` (5.1.6): a checksum is left to do.
const NEEDS_CSUM: u8 = 1;

/// Why a frame is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offence {
    Impersonation,
    Spoof,
}

/// The rules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    /// The only MAC address that the guest may use, if that is checked.
    mac: Option<[u8; 6]>,
}

impl Guard {
    pub(crate) fn new(mac: Option<[u8; 6]>) -> Self {
        Self { mac }
    }

    /// Whether the frame may be sent. `frame` is what [`frame::parse`](super::frame::parse) made of
    /// `bytes`.
    pub(crate) fn judge(
        &self,
        header: &[u8; HEADER_SIZE],
        bytes: Bytes<'_>,
        frame: &Frame,
    ) -> Result<Option<Offence>, Stop> {
        if impersonates(frame.payload) || is_loopback(bytes, frame)? {
            return Ok(Some(Offence::Impersonation));
        }
        let mut end = frame.end;
        if let Some(mac) = self.mac {
            if is_spoofed(bytes, frame, mac)? {
                return Ok(Some(Offence::Spoof));
            }
            if matches!(frame.payload, Payload::Arp { .. } | Payload::Icmpv6 { .. }) {
                end = frame.limit;
            }
        }
        Ok(rewrites(header, end).then_some(Offence::Impersonation))
    }

    /// Whether a frame may be sent that ends within its headers, at `end` or before.
    pub(crate) fn judge_cut(
        &self,
        header: &[u8; HEADER_SIZE],
        bytes: Bytes<'_>,
        end: usize,
    ) -> Option<Offence> {
        let spoofed = self.mac.is_some_and(|mac| bytes.get(6).ok() != Some(mac));
        if spoofed {
            return Some(Offence::Spoof);
        }
        rewrites(header, end).then_some(Offence::Impersonation)
    }
}

/// Whether source or destination is an address of this host alone.
fn is_loopback(bytes: Bytes<'_>, frame: &Frame) -> Result<bool, Stop> {
    /// Where the source address is in the header; the destination follows.
    const IPV4_SOURCE: usize = 12;
    const IPV6_SOURCE: usize = 8;
    match frame.kind {
        Network::Ipv4 => {
            let both: [u8; 8] = bytes.get(frame.network + IPV4_SOURCE)?;
            let both = both.as_chunks::<4>().0;
            Ok((both.iter()).any(|address| Ipv4Addr::from(*address).is_loopback()))
        }
        Network::Ipv6 => {
            let both: [u8; 32] = bytes.get(frame.network + IPV6_SOURCE)?;
            let both = both.as_chunks::<16>().0;
            Ok((both.iter()).any(|address| Ipv6Addr::from(*address).is_loopback()))
        }
        Network::Other => Ok(false),
    }
}

fn impersonates(payload: Payload) -> bool {
    match payload {
        Payload::Udp { v6: false, to, .. } => to == DHCP_CLIENT,
        Payload::Udp { v6: true, to, .. } => to == DHCPV6_CLIENT,
        Payload::Icmpv4 { kind } => kind == ICMPV4_REDIRECT,
        Payload::Icmpv6 { kind, fragment, .. } => {
            let discovery = (ROUTER_SOLICITATION..=REDIRECT).contains(&kind);
            matches!(kind, ROUTER_ADVERTISEMENT | REDIRECT) || (fragment && discovery)
        }
        Payload::Arp { .. } | Payload::Other => false,
    }
}

/// Whether the kernel would write a checksum before `end`.
fn rewrites(header: &[u8; HEADER_SIZE], end: usize) -> bool {
    let [
        flags,
        _,
        _,
        _,
        _,
        _,
        start_lo,
        start_hi,
        offset_lo,
        offset_hi,
        _,
        _,
    ] = *header;
    let start = usize::from(u16::from_le_bytes([start_lo, start_hi]));
    let offset = usize::from(u16::from_le_bytes([offset_lo, offset_hi]));
    flags & NEEDS_CSUM != 0 && start + offset < end
}

fn is_spoofed(bytes: Bytes<'_>, frame: &Frame, mac: [u8; 6]) -> Result<bool, Stop> {
    if bytes.get(6)? != mac {
        return Ok(true);
    }
    let bytes = bytes.until(frame.limit);
    match frame.payload {
        Payload::Arp { at } => {
            let ethernet = bytes.get(at)? == [0, 1] && bytes.get(at + 4)? == [6];
            Ok(!ethernet || bytes.get(at + 8)? != mac)
        }
        Payload::Icmpv6 { kind, at, .. } => match kind {
            ROUTER_SOLICITATION => names_another(bytes, at + 8, SOURCE_LINK_LAYER, mac),
            NEIGHBOR_SOLICITATION => names_another(bytes, at + 24, SOURCE_LINK_LAYER, mac),
            NEIGHBOR_ADVERTISEMENT => names_another(bytes, at + 24, TARGET_LINK_LAYER, mac),
            _ => Ok(false),
        },
        _ => Ok(false),
    }
}

/// Whether one of the options from `at` on is of this kind and holds another address.
fn names_another(bytes: Bytes<'_>, at: usize, kind: u8, mac: [u8; 6]) -> Result<bool, Stop> {
    let mut at = at;
    loop {
        let [option, units] = match bytes.get(at) {
            Ok(head) => head,
            // The last option is behind us.
            Err(Stop::End(_)) => return Ok(false),
            Err(stop) => return Err(stop),
        };
        if option == kind && bytes.get(at + 2)? != mac {
            return Ok(true);
        }
        if units == 0 {
            // Receivers refuse the whole message (RFC 4861, section 7.1).
            return Ok(false);
        }
        at += 8 * usize::from(units);
    }
}

#[cfg(test)]
mod tests;
