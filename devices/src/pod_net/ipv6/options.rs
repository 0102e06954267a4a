//! DHCPv6 options (RFC 8415, section 21).

use std::net::Ipv6Addr;

use crate::pod_net::LEASE_SECONDS;

/// When the client asks again: at a half and at four fifths (RFC 8415, section 21.4).
const RENEW_SECONDS: u32 = LEASE_SECONDS / 2;
const REBIND_SECONDS: u32 = LEASE_SECONDS / 5 * 4;

pub(super) const CLIENT_ID: u16 = 1;
pub(super) const SERVER_ID: u16 = 2;
pub(super) const IA_NA: u16 = 3;
pub(super) const IA_TA: u16 = 4;
pub(super) const IA_ADDRESS: u16 = 5;
pub(super) const PREFERENCE: u16 = 7;
pub(super) const STATUS: u16 = 13;
pub(super) const RAPID_COMMIT: u16 = 14;
/// RFC 3646.
pub(super) const DNS_SERVERS: u16 = 23;
pub(super) const DOMAIN_LIST: u16 = 24;
pub(super) const IA_PD: u16 = 25;

/// Status codes (section 21.13).
pub(super) const SUCCESS: u16 = 0;
pub(super) const NO_ADDRESSES: u16 = 2;
pub(super) const NOT_ON_LINK: u16 = 4;
pub(super) const NO_PREFIXES: u16 = 6;

/// DUID based on a link-layer address (section 11.4): type, hardware type Ethernet, address.
const DUID_LL: [u8; 4] = [0, 3, 0, 1];

/// The server's DUID.
pub(super) fn duid([a, b, c, d, e, f]: [u8; 6]) -> [u8; 10] {
    let [g, h, i, j] = DUID_LL;
    [g, h, i, j, a, b, c, d, e, f]
}

/// Options that are the same in every answer.
pub(super) fn encode(mac: [u8; 6], dns: &[Ipv6Addr], search: &[u8]) -> Vec<u8> {
    let dns: Vec<u8> = dns.iter().flat_map(Ipv6Addr::octets).collect();
    let mut options = Vec::new();
    for (code, data) in [
        (SERVER_ID, &duid(mac)[..]),
        (DNS_SERVERS, &dns),
        (DOMAIN_LIST, search),
    ] {
        // 16 bits hold more than an answer does; a longer list is found out by its sum.
        if !data.is_empty() {
            options.extend_from_slice(&code.to_be_bytes());
            options.extend_from_slice(&(data.len() as u16).to_be_bytes());
            options.extend_from_slice(data);
        }
    }
    options
}

/// The options in `data`; ends at one that is cut off.
#[derive(Clone, Debug)]
pub(super) struct Options<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[code_hi, code_lo, len_hi, len_lo], rest) = self.0.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes([len_hi, len_lo]));
        let (data, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((u16::from_be_bytes([code_hi, code_lo]), data))
    }
}

/// Writes options one after the other; `None` once one does not fit.
pub(super) struct Writer<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut [u8]) -> Self {
        Self { out, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&mut self, data: &[u8]) -> Option<()> {
        let to = self.out.get_mut(self.len..self.len + data.len())?;
        to.copy_from_slice(data);
        self.len += data.len();
        Some(())
    }

    /// An option with what `content` writes.
    pub(super) fn option(
        &mut self,
        code: u16,
        content: impl FnOnce(&mut Self) -> Option<()>,
    ) -> Option<()> {
        self.bytes(&code.to_be_bytes())?;
        let at = self.len;
        self.bytes(&[0; 2])?;
        content(self)?;
        let len = u16::try_from(self.len - at - 2).ok()?;
        self.out[at..at + 2].copy_from_slice(&len.to_be_bytes());
        Some(())
    }

    /// A status option without a message.
    pub(super) fn status(&mut self, status: u16) -> Option<()> {
        self.option(STATUS, |out| out.bytes(&status.to_be_bytes()))
    }

    /// Head of an identity association, with its times.
    pub(super) fn association(&mut self, id: [u8; 4]) -> Option<()> {
        self.bytes(&id)?;
        self.bytes(&RENEW_SECONDS.to_be_bytes())?;
        self.bytes(&REBIND_SECONDS.to_be_bytes())
    }

    /// An address with its lifetime in seconds.
    pub(super) fn address(&mut self, address: Ipv6Addr, lifetime: u32) -> Option<()> {
        self.option(IA_ADDRESS, |out| {
            out.bytes(&address.octets())?;
            out.bytes(&lifetime.to_be_bytes())?;
            out.bytes(&lifetime.to_be_bytes())
        })
    }
}
