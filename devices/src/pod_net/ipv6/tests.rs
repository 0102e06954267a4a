//! The DHCPv6 server, read by another implementation, and router advertisements.

use dhcproto::v6::{DhcpOption, Message, MessageType, OptionCode, Status};
use dhcproto::{Decodable, Decoder};
use proptest::prelude::*;
use smoltcp::wire::{
    Icmpv6Packet, Icmpv6Repr, NdiscPrefixInfoFlags, NdiscRepr, NdiscRouterFlags, UdpPacket,
};

use super::options::duid;
use super::*;
use crate::pod_net::answer::MAX_ANSWER;

const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0];
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0);
const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2);
const OLD: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9);
const DNS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x53);
const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe01, 0x203);
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const CLIENT_DUID: [u8; 10] = [0, 3, 0, 1, 0x52, 0x54, 0, 1, 2, 3];
const LEASE_SECONDS: u32 = 86_313_600;

fn lease() -> Ipv6Lease {
    Ipv6Lease {
        address: ADDRESS,
        prefix_len: 120,
        gateway_mac: GATEWAY_MAC,
        dns: vec![DNS],
        search: vec!["ns.svc.cluster.local".into(), "cluster.local".into()],
        mtu: 1450,
        router_advertisements: true,
    }
}

fn responder() -> Ipv6Responder {
    Ipv6Responder::new(&lease()).expect("the lease can be expressed")
}

fn packet(from: Ipv6Addr, to: Ipv6Addr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; NETWORK_LEN];
    EthernetRepr {
        src_addr: EthernetAddress(GUEST),
        dst_addr: EthernetAddress([0x33, 0x33, 0, 0, 0, 2]),
        ethertype: EthernetProtocol::Ipv6,
    }
    .emit(&mut EthernetFrame::new_unchecked(&mut frame));
    Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: protocol,
        payload_len: payload.len(),
        hop_limit: 255,
    }
    .emit(&mut Ipv6Packet::new_unchecked(
        &mut frame[ETHERNET_HEADER_LEN..],
    ));
    frame.extend(payload);
    frame
}

fn option(code: u16, data: &[u8]) -> Vec<u8> {
    [
        &code.to_be_bytes()[..],
        &(data.len() as u16).to_be_bytes(),
        data,
    ]
    .concat()
}

fn association(code: u16, id: u8, addresses: &[Ipv6Addr]) -> Vec<u8> {
    let mut data = vec![0, 0, 0, id];
    if code != 4 {
        data.extend([0; 8]);
    }
    for address in addresses {
        data.extend(option(5, &[&address.octets()[..], &[0; 8]].concat()));
    }
    option(code, &data)
}

fn client_id() -> Vec<u8> {
    option(1, &CLIENT_DUID)
}

fn server_id() -> Vec<u8> {
    option(2, &duid(GATEWAY_MAC))
}

fn message(kind: u8, options: &[Vec<u8>]) -> Vec<u8> {
    let mut udp = [546u16.to_be_bytes(), 547u16.to_be_bytes()].concat();
    let options = options.concat();
    udp.extend((8 + 4 + options.len() as u16).to_be_bytes());
    udp.extend([0, 0, kind, 1, 2, 3]);
    udp.extend(options);
    packet(CLIENT, SERVERS, IpProtocol::Udp, &udp)
}

fn answer(frame: &[u8]) -> Answer {
    responder().answer_dhcp(frame, &mut [0; MAX_ANSWER])
}

/// Checks headers and checksum of the answer and has it decoded.
fn reply_of(responder: &Ipv6Responder, kind: u8, options: &[Vec<u8>]) -> Message {
    let mut out = [0xee; MAX_ANSWER];
    let Answer::Frame(len) = responder.answer_dhcp(&message(kind, options), &mut out) else {
        panic!("no answer to type {kind}");
    };
    let ethernet = EthernetFrame::new_checked(&out[..len]).expect("an Ethernet frame");
    assert_eq!(ethernet.dst_addr(), EthernetAddress(GUEST));
    assert_eq!(ethernet.src_addr(), EthernetAddress(GATEWAY_MAC));
    let ip = Ipv6Packet::new_checked(ethernet.payload()).expect("an IPv6 packet");
    assert_eq!((ip.src_addr(), ip.dst_addr()), (GATEWAY, CLIENT));
    assert_eq!(usize::from(ip.payload_len()) + NETWORK_LEN, len);
    let udp = UdpPacket::new_checked(ip.payload()).expect("a UDP datagram");
    assert_eq!((udp.src_port(), udp.dst_port()), (547, 546));
    assert!(udp.checksum() != 0 && udp.verify_checksum(&GATEWAY.into(), &CLIENT.into()));
    let message = Message::decode(&mut Decoder::new(udp.payload())).expect("a DHCPv6 message");
    assert_eq!(message.xid(), [1, 2, 3]);
    message
}

fn reply(kind: u8, options: &[Vec<u8>]) -> Message {
    reply_of(&responder(), kind, options)
}

fn status(message: &Message) -> Option<Status> {
    match message.opts().get(OptionCode::StatusCode) {
        Some(DhcpOption::StatusCode(status)) => Some(status.status),
        _ => None,
    }
}

/// Addresses of the first association with their lifetimes.
fn given(message: &Message) -> Vec<(Ipv6Addr, u32)> {
    let Some(DhcpOption::IANA(association)) = message.opts().get(OptionCode::IANA) else {
        return Vec::new();
    };
    assert!(association.t1 < association.t2 && association.t2 < LEASE_SECONDS);
    let addresses = association.opts.iter().filter_map(|option| match option {
        DhcpOption::IAAddr(address) => {
            assert_eq!(address.preferred_life, address.valid_life);
            Some((address.addr, address.valid_life))
        }
        _ => None,
    });
    addresses.collect()
}

fn assert_configuration(message: &Message) {
    let opts = message.opts();
    assert_eq!(
        opts.get(OptionCode::ServerId),
        Some(&DhcpOption::ServerId(duid(GATEWAY_MAC).to_vec()))
    );
    assert_eq!(
        opts.get(OptionCode::DomainNameServers),
        Some(&DhcpOption::DomainNameServers(vec![DNS]))
    );
    let Some(DhcpOption::DomainSearchList(search)) = opts.get(OptionCode::DomainSearchList) else {
        panic!("no search list: {opts:?}");
    };
    let search: Vec<_> = search.iter().map(ToString::to_string).collect();
    assert_eq!(search, ["ns.svc.cluster.local.", "cluster.local."]);
}

#[test]
fn solicit_is_offered_the_address_at_once() {
    let options = [client_id(), association(3, 7, &[])];
    let advertise = reply(1, &options);
    assert_eq!(advertise.msg_type(), MessageType::Advertise);
    assert_eq!(given(&advertise), [(ADDRESS, LEASE_SECONDS)]);
    assert_configuration(&advertise);
    let opts = advertise.opts();
    assert_eq!(
        opts.get(OptionCode::Preference),
        Some(&DhcpOption::Preference(255))
    );
    assert_eq!(
        opts.get(OptionCode::ClientId),
        Some(&DhcpOption::ClientId(CLIENT_DUID.to_vec()))
    );

    let rapid = reply(1, &[&options[..], &[option(14, &[])]].concat());
    assert_eq!(rapid.msg_type(), MessageType::Reply);
    assert!(rapid.opts().get(OptionCode::RapidCommit).is_some());
    assert_eq!(given(&rapid), [(ADDRESS, LEASE_SECONDS)]);
}

#[test]
fn request_renew_and_rebind_are_given_the_address() {
    for (kind, server) in [(3, vec![server_id()]), (5, vec![server_id()]), (6, vec![])] {
        for addresses in [&[][..], &[ADDRESS]] {
            let options = [&server[..], &[client_id(), association(3, 7, addresses)]].concat();
            let reply = reply(kind, &options);
            assert_eq!(reply.msg_type(), MessageType::Reply, "type {kind}");
            assert_eq!(given(&reply), [(ADDRESS, LEASE_SECONDS)], "type {kind}");
            assert_configuration(&reply);
        }
        let options = [&server[..], &[client_id(), association(3, 7, &[OLD])]].concat();
        let given = given(&reply(kind, &options));
        assert_eq!(given, [(ADDRESS, LEASE_SECONDS), (OLD, 0)], "type {kind}");
    }
}

#[test]
fn there_is_one_address_and_nothing_else() {
    let options = [
        client_id(),
        association(25, 1, &[]),
        association(3, 7, &[]),
        association(3, 8, &[]),
        association(4, 9, &[]),
    ];
    let advertise = reply(1, &options);
    assert_eq!(given(&advertise), [(ADDRESS, LEASE_SECONDS)]);
    let refusals: Vec<_> = advertise
        .opts()
        .iter()
        .filter_map(|option| match option {
            DhcpOption::IANA(association) => Some((association.id, &association.opts)),
            DhcpOption::IATA(association) => Some((association.id, &association.opts)),
            DhcpOption::IAPD(association) => Some((association.id, &association.opts)),
            _ => None,
        })
        .filter_map(|(id, opts)| match opts.get(OptionCode::StatusCode) {
            Some(DhcpOption::StatusCode(status)) => Some((id, status.status)),
            _ => None,
        })
        .collect();
    let mut sorted = refusals;
    sorted.sort_by_key(|&(id, _)| id);
    let expected = [
        (1, Status::NoPrefixAvail),
        (8, Status::NoAddrsAvail),
        (9, Status::NoAddrsAvail),
    ];
    assert_eq!(sorted, expected);
}

#[test]
fn confirm_release_decline_and_information_request_are_answered() {
    let confirm = |addresses: &[Ipv6Addr]| reply(4, &[client_id(), association(3, 7, addresses)]);
    assert_eq!(status(&confirm(&[ADDRESS])), Some(Status::Success));
    assert_eq!(status(&confirm(&[ADDRESS, OLD])), Some(Status::NotOnLink));
    let empty = message(4, &[client_id(), association(3, 7, &[])]);
    assert_eq!(answer(&empty), Answer::Silence);

    for kind in [8, 9] {
        let reply = reply(
            kind,
            &[client_id(), server_id(), association(3, 7, &[ADDRESS])],
        );
        assert_eq!(status(&reply), Some(Status::Success), "type {kind}");
    }
    for options in [&[][..], &[client_id()], &[client_id(), server_id()]] {
        let reply = reply(11, options);
        assert_configuration(&reply);
        assert_eq!(given(&reply), []);
    }
}

#[test]
fn messages_that_break_the_rules_are_not_answered() {
    let other = option(2, &duid(GUEST));
    let with_association = |options: &[Vec<u8>]| [options, &[association(3, 7, &[])]].concat();
    let rejected: &[(u8, &[Vec<u8>])] = &[
        (1, &[]),
        (1, &[client_id(), server_id()]),
        (1, &[option(1, &[0; 131])]),
        (3, &[client_id()]),
        (3, &[client_id(), other.clone()]),
        (3, &[server_id()]),
        (5, &[client_id(), other.clone()]),
        (6, &[client_id(), server_id()]),
        (8, &[client_id()]),
        (11, &[other]),
    ];
    for (kind, options) in rejected {
        let frame = message(*kind, &with_association(options));
        assert_eq!(answer(&frame), Answer::Silence, "type {kind}: {options:?}");
    }
    for kind in [0, 2, 7, 10, 12, 13, 255] {
        let frame = message(kind, &with_association(&[client_id()]));
        assert_eq!(answer(&frame), Answer::Pass, "type {kind}");
    }
}

#[test]
fn packets_for_others_are_left_alone() {
    let solicit = message(1, &[client_id(), association(3, 7, &[])]);
    let udp = &solicit[NETWORK_LEN..];
    assert!(matches!(answer(&solicit), Answer::Frame(_)));
    assert!(matches!(
        answer(&packet(CLIENT, GATEWAY, IpProtocol::Udp, udp)),
        Answer::Frame(_)
    ));
    assert_eq!(
        answer(&packet(CLIENT, DNS, IpProtocol::Udp, udp)),
        Answer::Pass
    );
    assert_eq!(
        answer(&packet(ADDRESS, SERVERS, IpProtocol::Udp, udp)),
        Answer::Pass
    );
    let nobody = packet(Ipv6Addr::UNSPECIFIED, SERVERS, IpProtocol::Udp, udp);
    assert_eq!(answer(&nobody), Answer::Silence);
    for len in 0..HEADERS_LEN {
        assert_eq!(answer(&solicit[..len]), Answer::Pass, "cut to {len} bytes");
    }
}

fn solicitation(from: Ipv6Addr) -> Vec<u8> {
    packet(
        from,
        ROUTERS,
        IpProtocol::Icmpv6,
        &[133, 0, 0, 0, 0, 0, 0, 0],
    )
}

/// Checks an advertisement's headers, where it goes to, and what it says.
fn assert_advertisement(frame: &[u8], mac: [u8; 6], to: Ipv6Addr) {
    let ethernet = EthernetFrame::new_checked(frame).expect("an Ethernet frame");
    assert_eq!(ethernet.dst_addr(), EthernetAddress(mac));
    let ip = Ipv6Packet::new_checked(ethernet.payload()).expect("an IPv6 packet");
    assert_eq!(
        (ip.src_addr(), ip.dst_addr(), ip.hop_limit()),
        (GATEWAY, to, 255)
    );
    let icmp = Icmpv6Packet::new_checked(ip.payload()).expect("an ICMPv6 message");
    let repr = Icmpv6Repr::parse(&GATEWAY, &to, &icmp, &checksums()).expect("a right checksum");
    let Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
        flags,
        router_lifetime,
        lladdr,
        mtu,
        prefix_info,
        ..
    }) = repr
    else {
        panic!("not an advertisement: {repr:?}");
    };
    assert_eq!(flags, NdiscRouterFlags::MANAGED | NdiscRouterFlags::OTHER);
    assert_eq!(router_lifetime.secs(), 9000);
    assert_eq!(lladdr, Some(EthernetAddress(GATEWAY_MAC).into()));
    assert_eq!(mtu, Some(1450));
    let prefix = prefix_info.expect("the subnet");
    assert_eq!(
        (prefix.prefix, prefix.prefix_len),
        (Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 0), 120)
    );
    assert_eq!(prefix.flags, NdiscPrefixInfoFlags::ON_LINK);
}

#[test]
fn solicitations_are_answered_with_the_router() {
    const ALL: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ALL_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    for (from, mac, to) in [
        (CLIENT, GUEST, CLIENT),
        (Ipv6Addr::UNSPECIFIED, ALL_MAC, ALL),
    ] {
        let mut out = [0xee; MAX_ANSWER];
        let Answer::Frame(len) = responder().answer_solicitation(&solicitation(from), &mut out)
        else {
            panic!("no advertisement for {from}");
        };
        assert_advertisement(&out[..len], mac, to);
    }
    let mut out = [0xee; MAX_ANSWER];
    let len = responder().advertise(&mut out).expect("there is room");
    assert_advertisement(&out[..len], ALL_MAC, ALL);
    assert_eq!(responder().advertise(&mut out[..len - 1]), None);
}

#[test]
fn impossible_leases_are_refused() {
    let error = |lease: Ipv6Lease| Ipv6Responder::new(&lease).err();
    let long = vec!["a.very.long.name.example".into(); 60];
    assert_eq!(
        error(Ipv6Lease {
            prefix_len: 129,
            ..lease()
        }),
        Some(LeaseError::Prefix(129))
    );
    assert!(matches!(
        error(Ipv6Lease {
            search: long,
            ..lease()
        }),
        Some(LeaseError::TooLong(_))
    ));
    let bad = Ipv6Lease {
        search: vec!["a..b".into()],
        ..lease()
    };
    assert_eq!(error(bad), Some(LeaseError::Name("a..b".into())));
}

/// The longest answer fits: the most options, the longest identifier.
#[test]
fn the_longest_lease_is_given() {
    let mut lease = lease();
    while Ipv6Responder::new(&lease).is_ok() {
        lease.dns.push(DNS);
    }
    lease.dns.pop();
    let responder = Ipv6Responder::new(&lease).expect("the lease can be expressed");
    let options = [
        option(1, &[7; 130]),
        option(14, &[]),
        association(3, 7, &[]),
    ];
    assert_eq!(
        given(&reply_of(&responder, 1, &options)),
        [(ADDRESS, LEASE_SECONDS)]
    );
}

proptest! {
    #[test]
    fn random_messages_do_no_harm(
        kind in 0u8..14,
        options in prop::collection::vec(
            (prop::sample::select(vec![1u16, 2, 3, 4, 5, 13, 14, 23, 25]), prop::collection::vec(any::<u8>(), 0..60)), 0..20),
        len in 0usize..1514,
    ) {
        let options: Vec<_> = options.iter().map(|(code, data)| option(*code, data)).collect();
        let mut frame = message(kind, &options);
        frame.truncate(len);
        let mut out = [0; MAX_ANSWER];
        if let Answer::Frame(len) = responder().answer_dhcp(&frame, &mut out) {
            prop_assert!(len <= MAX_ANSWER);
        }
        responder().answer_solicitation(&frame, &mut out);
    }
}
