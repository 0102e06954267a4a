//! DHCPv6 messages (RFC 8415): what a client says and what it is told.

use std::net::Ipv6Addr;

use super::options::{
    CLIENT_ID, IA_ADDRESS, IA_NA, IA_PD, IA_TA, NO_ADDRESSES, NO_PREFIXES, NOT_ON_LINK, Options,
    PREFERENCE, RAPID_COMMIT, SERVER_ID, SUCCESS, Writer, duid,
};
use super::{HEADERS_LEN, Ipv6Responder};
use crate::pod_net::LEASE_SECONDS;
use crate::pod_net::answer::{Answer, MAX_ANSWER};

/// Message types (section 7.3).
const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION_REQUEST: u8 = 11;

/// Longest DUID, bytes (section 11.1).
const MAX_DUID: usize = 130;

/// Identity associations that are answered, and addresses in each; a client has one of each.
const MAX_ASSOCIATIONS: usize = 8;
const MAX_ADDRESSES: usize = 4;

/// Room that an answer needs besides the fixed options, with one association.
const RESERVE: usize = 4 + (4 + MAX_DUID) + 5 + 4 + 6 + (16 + 28);

/// Room for the fixed options.
pub(in crate::pod_net) const MAX_OPTIONS: usize = MAX_ANSWER - HEADERS_LEN - RESERVE;

/// A client's message.
struct Message<'a> {
    kind: u8,
    transaction: [u8; 3],
    options: Options<'a>,
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    rapid_commit: bool,
}

impl<'a> Message<'a> {
    fn parse(payload: &'a [u8]) -> Option<Self> {
        let (&[kind, a, b, c], options) = payload.split_first_chunk()?;
        let mut message = Self {
            kind,
            transaction: [a, b, c],
            options: Options(options),
            client: None,
            server: None,
            rapid_commit: false,
        };
        for (code, data) in message.options.clone() {
            match code {
                CLIENT_ID if data.len() > MAX_DUID => return None,
                CLIENT_ID => message.client = Some(data),
                SERVER_ID => message.server = Some(data),
                RAPID_COMMIT => message.rapid_commit = true,
                _ => {}
            }
        }
        Some(message)
    }

    fn associations(&self) -> impl Iterator<Item = (u16, [u8; 4], Options<'a>)> {
        let association = |(code, data): (u16, &'a [u8])| {
            let head = match code {
                IA_NA | IA_PD => 12,
                IA_TA => 4,
                _ => return None,
            };
            let id = data.first_chunk().copied()?;
            Some((code, id, Options(data.get(head..)?)))
        };
        self.options
            .clone()
            .filter_map(association)
            .take(MAX_ASSOCIATIONS)
    }
}

/// The addresses named in an association.
fn addresses(options: Options<'_>) -> impl Iterator<Item = Ipv6Addr> {
    options
        .filter(|&(code, _)| code == IA_ADDRESS)
        .filter_map(|(_, data)| data.first_chunk::<16>().copied())
        .map(Ipv6Addr::from)
}

/// What an answer holds besides the fixed options.
#[derive(Clone, Copy)]
enum Content {
    /// The lease.
    Lease,
    Status(u16),
    /// Nothing.
    Configuration,
}

impl Ipv6Responder {
    /// Answers a DHCPv6 message into `out`.
    pub(super) fn answer_message(&self, payload: &[u8], out: &mut [u8]) -> Answer {
        let Some(message) = Message::parse(payload) else {
            return Answer::Silence;
        };
        match self.decide(&message) {
            Ok((kind, content)) => self
                .write(&message, kind, content, out)
                .map_or(Answer::Silence, Answer::Frame),
            Err(answer) => answer,
        }
    }

    /// Sections 16 and 18.3.
    fn decide(&self, message: &Message<'_>) -> Result<(u8, Content), Answer> {
        let ours = message.server == Some(&duid(self.gateway_mac.0)[..]);
        // A message needs: a client's identifier, and ours, or none, of the server.
        let (needs_client, fits_server) = match message.kind {
            SOLICIT | CONFIRM | REBIND => (true, message.server.is_none()),
            REQUEST | RENEW | RELEASE | DECLINE => (true, ours),
            INFORMATION_REQUEST => (false, ours || message.server.is_none()),
            // Relays, reconfiguration and what else there may be.
            _ => return Err(Answer::Pass),
        };
        if !fits_server || (needs_client && message.client.is_none()) {
            return Err(Answer::Silence);
        }
        Ok(match message.kind {
            SOLICIT if message.rapid_commit => (REPLY, Content::Lease),
            SOLICIT => (ADVERTISE, Content::Lease),
            REQUEST | RENEW | REBIND => (REPLY, Content::Lease),
            CONFIRM => (REPLY, Content::Status(self.confirm(message)?)),
            RELEASE | DECLINE => (REPLY, Content::Status(SUCCESS)),
            _ => (REPLY, Content::Configuration),
        })
    }

    /// Whether the client may keep its addresses. A message without any is not answered.
    fn confirm(&self, message: &Message<'_>) -> Result<u16, Answer> {
        let mut named = message
            .associations()
            .flat_map(|(_, _, options)| addresses(options))
            .peekable();
        if named.peek().is_none() {
            return Err(Answer::Silence);
        }
        // Nothing is forwarded to another address than the leased one.
        Ok(if named.all(|address| address == self.address) {
            SUCCESS
        } else {
            NOT_ON_LINK
        })
    }

    fn write(
        &self,
        message: &Message<'_>,
        kind: u8,
        content: Content,
        out: &mut [u8],
    ) -> Option<usize> {
        let mut out = Writer::new(out);
        out.bytes(&[kind])?;
        out.bytes(&message.transaction)?;
        if let Some(client) = message.client {
            out.option(CLIENT_ID, |out| out.bytes(client))?;
        }
        out.bytes(&self.options)?;
        if message.kind == SOLICIT {
            // There is no better server to wait for.
            out.option(PREFERENCE, |out| out.bytes(&[255]))?;
            if kind == REPLY {
                out.option(RAPID_COMMIT, |_| Some(()))?;
            }
        }
        match content {
            Content::Lease => self.write_lease(message, &mut out)?,
            Content::Status(status) => out.status(status)?,
            Content::Configuration => {}
        }
        Some(out.len())
    }

    /// The first association gets the address, others get nothing, since there is no more.
    fn write_lease(&self, message: &Message<'_>, out: &mut Writer<'_>) -> Option<()> {
        let mut given = false;
        for (code, id, options) in message.associations() {
            let first = code == IA_NA && !given;
            given |= first;
            out.option(code, |out| match code {
                IA_NA if first => {
                    out.association(id)?;
                    out.address(self.address, LEASE_SECONDS)?;
                    self.write_stale(options, out)
                }
                IA_TA => {
                    out.bytes(&id)?;
                    out.status(NO_ADDRESSES)
                }
                _ => {
                    out.association(id)?;
                    out.status(if code == IA_PD {
                        NO_PREFIXES
                    } else {
                        NO_ADDRESSES
                    })
                }
            })?;
        }
        Some(())
    }

    /// Addresses that the client shall not use any more (section 18.3.4).
    fn write_stale(&self, options: Options<'_>, out: &mut Writer<'_>) -> Option<()> {
        addresses(options)
            .filter(|&address| address != self.address)
            .take(MAX_ADDRESSES)
            .try_for_each(|address| out.address(address, 0))
    }

    /// The subnet's first address.
    pub(super) fn subnet(&self) -> Ipv6Addr {
        let mask = u128::MAX
            .checked_shl(128 - u32::from(self.prefix_len))
            .unwrap_or(0);
        Ipv6Addr::from_bits(self.address.to_bits() & mask)
    }
}
