//! The headers of a frame that the guest sends, as far as rules need them.
//!
//! Every byte is the guest's word: each is looked at within a bound, and never again after it was
//! copied (see `virtio/net/outgoing.rs`). VLAN tags, IPv4 options, IPv6 extension headers and fragments
//! are walked; what follows them is named by its offset.

/// Ethertypes.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad, and the number that some used before there was 802.1ad.
const VLAN_TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// More VLAN tags than anybody uses. Linux strips any number of tags with VLAN 0.
const MAX_TAGS: usize = 4;

/// Where a frame's ethertype is, without tags.
const ETHERTYPE_AT: usize = 12;
const TAG: usize = 4;

/// IP protocol numbers.
const ICMPV4: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// IPv6 extension headers (RFC 8200, and others with the same layout).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

const IPV6_HEADER: usize = 40;

/// A frame's bytes as far as they were copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes<'a> {
    copied: &'a [u8],
    /// Where the packet ends: the frame's length, or less if the IP header says so.
    end: usize,
}

/// Why the headers could not be read to their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// More of the frame has to be copied.
    More,
    /// The packet ends before this offset. Receivers throw it away.
    End(usize),
    /// What the packet carries is not in it: too many tags, or a first fragment that leaves headers
    /// to the next one (RFC 7112 forbids it, RFC 7113 tells what for it is used).
    Hidden,
}

/// What a frame carries. Offsets are from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    Arp {
        at: usize,
    },
    /// UDP over IPv4 (`v6` false) or IPv6.
    Udp {
        v6: bool,
        at: usize,
        to: u16,
    },
    Icmpv4 {
        kind: u8,
    },
    Icmpv6 {
        kind: u8,
        at: usize,
        /// Part of a larger packet.
        fragment: bool,
    },
    /// Anything else, and fragments other than the first.
    Other,
}

/// What the network header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Ipv4,
    Ipv6,
    Other,
}

/// A frame's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) payload: Payload,
    pub(crate) kind: Network,
    /// Where the network header is.
    pub(crate) network: usize,
    /// Where the packet ends.
    pub(crate) limit: usize,
    /// End of what decided about the payload.
    pub(crate) end: usize,
}

impl<'a> Bytes<'a> {
    /// `copied` is the start of a frame of `len` bytes.
    pub(crate) fn new(copied: &'a [u8], len: usize) -> Self {
        Self { copied, end: len }
    }

    /// `N` bytes at `at`.
    pub(crate) fn get<const N: usize>(&self, at: usize) -> Result<[u8; N], Stop> {
        let end = at.saturating_add(N);
        if end > self.end {
            return Err(Stop::End(end));
        }
        match self.copied.get(at..end).map(<[u8; N]>::try_from) {
            Some(Ok(bytes)) => Ok(bytes),
            _ => Err(Stop::More),
        }
    }

    /// A number in network order.
    pub(crate) fn u16(&self, at: usize) -> Result<u16, Stop> {
        self.get(at).map(u16::from_be_bytes)
    }

    fn u8(&self, at: usize) -> Result<u8, Stop> {
        self.get(at).map(|[byte]| byte)
    }

    /// The same without what is behind `end`: padding, which receivers do not take for payload.
    pub(crate) fn until(self, end: usize) -> Self {
        Self {
            end: self.end.min(end),
            ..self
        }
    }
}

/// Reads the headers of a frame.
pub(crate) fn parse(bytes: Bytes<'_>) -> Result<Frame, Stop> {
    let mut at = ETHERTYPE_AT;
    let mut ethertype = bytes.u16(at)?;
    let mut tags = 0;
    while VLAN_TAGS.contains(&ethertype) {
        tags += 1;
        if tags > MAX_TAGS {
            return Err(Stop::Hidden);
        }
        at += TAG;
        ethertype = bytes.u16(at)?;
    }
    let network = at + 2;
    match ethertype {
        IPV4 => ipv4(bytes, network),
        IPV6 => ipv6(bytes, network),
        ARP => Ok(other(bytes, network, Payload::Arp { at: network })),
        _ => Ok(other(bytes, network, Payload::Other)),
    }
}

fn other(bytes: Bytes<'_>, network: usize, payload: Payload) -> Frame {
    found(bytes, (Network::Other, network), payload, network)
}

fn found(
    bytes: Bytes<'_>,
    (kind, network): (Network, usize),
    payload: Payload,
    end: usize,
) -> Frame {
    Frame {
        payload,
        kind,
        network,
        limit: bytes.end,
        end,
    }
}

fn ipv4(bytes: Bytes<'_>, network: usize) -> Result<Frame, Stop> {
    let [
        version_ihl,
        _,
        len_hi,
        len_lo,
        _,
        _,
        fragment_hi,
        fragment_lo,
        _,
        protocol,
    ] = bytes.get(network)?;
    let transport = network + usize::from(version_ihl & 0xf) * 4;
    let len = usize::from(u16::from_be_bytes([len_hi, len_lo]));
    // No length is the kernel's own sign of a packet above 64 KiB.
    let packet = match len {
        0 => bytes,
        len => bytes.until(network + len),
    };
    let fragment = u16::from_be_bytes([fragment_hi, fragment_lo]);
    let (offset, more) = (fragment & 0x1fff, fragment & 0x2000 != 0);
    if offset != 0 {
        let network = (Network::Ipv4, network);
        return Ok(found(packet, network, Payload::Other, transport));
    }
    let upper = Upper {
        network,
        at: transport,
        v6: false,
        fragment: more,
    };
    upper.read(packet, protocol)
}

fn ipv6(bytes: Bytes<'_>, network: usize) -> Result<Frame, Stop> {
    let len = usize::from(bytes.u16(network + 4)?);
    let mut next = bytes.u8(network + 6)?;
    let mut at = network + IPV6_HEADER;
    let packet = match len {
        0 => bytes,
        len => bytes.until(at + len),
    };
    let mut fragment = false;
    let hide = |stop, fragment| match stop {
        Stop::End(_) if fragment => Stop::Hidden,
        stop => stop,
    };
    loop {
        let len = match next {
            HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HIP | SHIM6 => {
                let [_, units] = packet.get(at).map_err(|stop| hide(stop, fragment))?;
                8 + 8 * usize::from(units)
            }
            AUTHENTICATION => {
                let [_, units] = packet.get(at).map_err(|stop| hide(stop, fragment))?;
                8 + 4 * usize::from(units)
            }
            FRAGMENT => {
                let flags = packet.u16(at + 2).map_err(|stop| hide(stop, fragment))?;
                if flags & 0xfff8 != 0 {
                    let network = (Network::Ipv6, network);
                    return Ok(found(packet, network, Payload::Other, at + 8));
                }
                fragment |= flags & 1 != 0;
                8
            }
            _ => break,
        };
        next = packet.u8(at).map_err(|stop| hide(stop, fragment))?;
        at += len;
    }
    let upper = Upper {
        network,
        at,
        v6: true,
        fragment,
    };
    upper.read(packet, next)
}

/// Where the header above IP is.
struct Upper {
    network: usize,
    at: usize,
    v6: bool,
    fragment: bool,
}

impl Upper {
    fn read(&self, packet: Bytes<'_>, protocol: u8) -> Result<Frame, Stop> {
        let &Self { at, v6, .. } = self;
        let hide = |stop| match stop {
            Stop::End(_) if self.fragment => Stop::Hidden,
            stop => stop,
        };
        let (payload, end) = match (protocol, v6) {
            (UDP, v6) => {
                let to = packet.u16(at + 2).map_err(hide)?;
                (Payload::Udp { v6, at, to }, at + 4)
            }
            (ICMPV4, false) => {
                let kind = packet.u8(at).map_err(hide)?;
                (Payload::Icmpv4 { kind }, at + 1)
            }
            (ICMPV6, true) => {
                let kind = packet.u8(at).map_err(hide)?;
                let fragment = self.fragment;
                (Payload::Icmpv6 { kind, at, fragment }, at + 1)
            }
            _ => (Payload::Other, at),
        };
        let kind = if v6 { Network::Ipv6 } else { Network::Ipv4 };
        Ok(found(packet, (kind, self.network), payload, end))
    }
}
