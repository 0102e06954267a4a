//! DHCP options of a lease, encoded once.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::{DhcpLease, DhcpOptions, LeaseError};
use crate::pod_net::names;

const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const HOST_NAME: u8 = 12;
const DOMAIN_NAME: u8 = 15;
const MTU: u8 = 26;
const NTP_SERVERS: u8 = 42;
const TFTP_SERVER_NAME: u8 = 66;
const BOOT_FILE_NAME: u8 = 67;
const DOMAIN_SEARCH: u8 = 119;
const CLASSLESS_ROUTES: u8 = 121;

/// Options for private use (RFC 3942); 255 is the end mark.
const PRIVATE: RangeInclusive<u8> = 224..=254;

/// The options of `lease` that tell the guest its configuration: all but message type, server
/// identifier, lease time and end mark.
pub(super) fn encode(lease: &DhcpLease) -> Result<Vec<u8>, LeaseError> {
    let mut options = Vec::new();
    push(&mut options, SUBNET_MASK, &mask(lease.prefix_len)?.octets());
    push(&mut options, MTU, &lease.mtu.to_be_bytes());
    if let Some(router) = lease.router {
        push(&mut options, ROUTER, &router.octets());
    }
    push(&mut options, DNS, &octets(&lease.dns));
    if let Some(hostname) = &lease.hostname {
        push(
            &mut options,
            HOST_NAME,
            names::checked(hostname)?.as_bytes(),
        );
    }
    if let Some(domain) = &lease.domain {
        push(
            &mut options,
            DOMAIN_NAME,
            names::checked(domain)?.as_bytes(),
        );
    }
    push(
        &mut options,
        DOMAIN_SEARCH,
        &names::search_list(&lease.search)?,
    );
    push(&mut options, CLASSLESS_ROUTES, &classless_routes(lease)?);
    push_chosen(&mut options, &lease.options)?;
    Ok(options)
}

/// What the VMI's author chose; values are passed on as they are.
fn push_chosen(options: &mut Vec<u8>, chosen: &DhcpOptions) -> Result<(), LeaseError> {
    if let Some(name) = &chosen.tftp_server_name {
        push(options, TFTP_SERVER_NAME, name.as_bytes());
    }
    if let Some(name) = &chosen.boot_file_name {
        push(options, BOOT_FILE_NAME, name.as_bytes());
    }
    push(options, NTP_SERVERS, &octets(&chosen.ntp_servers));
    for (code, value) in &chosen.private_options {
        if !PRIVATE.contains(code) {
            return Err(LeaseError::Private(*code));
        }
        push(options, *code, value.as_bytes());
    }
    Ok(())
}

fn octets(addresses: &[Ipv4Addr]) -> Vec<u8> {
    addresses.iter().flat_map(Ipv4Addr::octets).collect()
}

/// Appends an option; data over 255 bytes is split over several (RFC 3396), no data is no option.
fn push(options: &mut Vec<u8>, code: u8, data: &[u8]) {
    for part in data.chunks(255) {
        options.extend_from_slice(&[code, part.len() as u8]);
        options.extend_from_slice(part);
    }
}

fn mask(prefix_len: u8) -> Result<Ipv4Addr, LeaseError> {
    match prefix_len {
        0 => Ok(Ipv4Addr::UNSPECIFIED),
        1..=32 => Ok(Ipv4Addr::from_bits(u32::MAX << (32 - prefix_len))),
        _ => Err(LeaseError::Prefix(prefix_len)),
    }
}

/// RFC 3442: a client that reads these ignores the router option, so the default route is among
/// them, last. A router outside the subnet gets its link route from `routes`.
fn classless_routes(lease: &DhcpLease) -> Result<Vec<u8>, LeaseError> {
    if lease.routes.is_empty() {
        return Ok(Vec::new());
    }
    let mut encoded = Vec::new();
    let default = lease
        .router
        .map(|router| (Ipv4Addr::UNSPECIFIED, 0, router));
    for (destination, prefix_len, gateway) in lease.routes.iter().copied().chain(default) {
        let network = destination & mask(prefix_len)?;
        encoded.push(prefix_len);
        encoded.extend_from_slice(&network.octets()[..usize::from(prefix_len).div_ceil(8)]);
        encoded.extend_from_slice(&gateway.octets());
    }
    Ok(encoded)
}
