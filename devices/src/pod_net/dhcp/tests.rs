//! The responder against requests that are right, wrong, and random.

use proptest::prelude::*;
use smoltcp::wire::{DhcpMessageType, DhcpRepr, IpAddress};

use super::*;

const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 75, 10);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const TRANSACTION: u32 = 0xdead_beef;

fn lease() -> DhcpLease {
    DhcpLease {
        address: ADDRESS,
        prefix_len: 24,
        server: SERVER,
        router: Some(GATEWAY),
        routes: vec![(Ipv4Addr::new(10, 244, 0, 0), 16, GATEWAY)],
        dns: vec![Ipv4Addr::new(10, 96, 0, 10), Ipv4Addr::new(1, 1, 1, 1)],
        hostname: Some("vm-1".into()),
        domain: Some("ns.svc.cluster.local".into()),
        search: vec!["ns.svc.cluster.local".into(), "cluster.local".into()],
        mtu: 1450,
        options: DhcpOptions::default(),
        any_client: false,
    }
}

fn responder() -> DhcpResponder {
    DhcpResponder::new(&lease(), GUEST).expect("the lease can be expressed")
}

/// A client's frame; `change` spoils the DHCP message before it is wrapped up.
fn request(
    message_type: DhcpMessageType,
    server: Option<Ipv4Addr>,
    change: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let repr = DhcpRepr {
        message_type,
        transaction_id: TRANSACTION,
        secs: 3,
        client_hardware_address: EthernetAddress(GUEST),
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: None,
        subnet_mask: None,
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: false,
        requested_ip: None,
        client_identifier: Some(EthernetAddress(GUEST)),
        server_identifier: server,
        parameter_request_list: Some(&[1, 3, 6]),
        dns_servers: None,
        max_size: Some(1500),
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut frame = vec![0; HEADERS_LEN + repr.buffer_len()];
    let payload = &mut frame[HEADERS_LEN..];
    repr.emit(&mut DhcpPacket::new_unchecked(&mut *payload))
        .expect("the buffer has its size");
    change(payload);
    let dhcp_len = payload.len();
    EthernetRepr {
        src_addr: EthernetAddress(GUEST),
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Ipv4,
    }
    .emit(&mut EthernetFrame::new_unchecked(&mut frame));
    Ipv4Repr {
        src_addr: Ipv4Addr::UNSPECIFIED,
        dst_addr: Ipv4Addr::BROADCAST,
        next_header: IpProtocol::Udp,
        payload_len: UDP_HEADER_LEN + dhcp_len,
        hop_limit: 64,
    }
    .emit(
        &mut Ipv4Packet::new_unchecked(&mut frame[ETHERNET_HEADER_LEN..]),
        &ChecksumCapabilities::default(),
    );
    let mut udp = UdpPacket::new_unchecked(&mut frame[ETHERNET_HEADER_LEN + IPV4_HEADER_LEN..]);
    udp.set_src_port(DHCP_CLIENT_PORT);
    udp.set_dst_port(DHCP_SERVER_PORT);
    udp.set_len((UDP_HEADER_LEN + dhcp_len) as u16);
    frame
}

/// The answer to `frame`.
fn answer(responder: &DhcpResponder, frame: &[u8]) -> Vec<u8> {
    let mut out = [0; MAX_ANSWER];
    match responder.answer(frame, &mut out) {
        Answer::Frame(len) => out[..len].to_vec(),
        other => panic!("no answer: {other:?}"),
    }
}

fn discover() -> Vec<u8> {
    request(DhcpMessageType::Discover, None, |_| {})
}

/// Checks headers and checksums and returns the DHCP message.
fn unwrap_answer(answer: &[u8]) -> &[u8] {
    let ethernet = EthernetFrame::new_checked(answer).expect("an Ethernet frame");
    assert_eq!(ethernet.dst_addr(), EthernetAddress(GUEST));
    let ip = Ipv4Packet::new_checked(ethernet.payload()).expect("an IPv4 packet");
    assert!(ip.verify_checksum());
    assert_eq!((ip.src_addr(), ip.dst_addr()), (SERVER, ADDRESS));
    assert_eq!(
        usize::from(ip.total_len()) + ETHERNET_HEADER_LEN,
        answer.len()
    );
    let udp = UdpPacket::new_checked(ip.payload()).expect("a UDP datagram");
    assert!(udp.checksum() != 0);
    assert!(udp.verify_checksum(&IpAddress::from(SERVER), &IpAddress::from(ADDRESS)));
    assert_eq!((udp.src_port(), udp.dst_port()), (67, 68));
    udp.payload()
}

fn option(dhcp: &[u8], code: u8) -> Option<Vec<u8>> {
    let packet = DhcpPacket::new_checked(dhcp).expect("a DHCP message");
    let found: Vec<_> = packet
        .options()
        .filter(|option| option.kind == code)
        .collect();
    (!found.is_empty()).then(|| {
        found
            .iter()
            .flat_map(|option| option.data.to_vec())
            .collect()
    })
}

#[test]
fn discover_is_offered_the_lease() {
    let offer = answer(&responder(), &discover());
    let dhcp = unwrap_answer(&offer);
    let packet = DhcpPacket::new_checked(dhcp).expect("a DHCP message");
    let repr = DhcpRepr::parse(&packet).expect("a DHCP message");
    assert_eq!(repr.message_type, DhcpMessageType::Offer);
    assert_eq!(repr.transaction_id, TRANSACTION);
    assert_eq!(repr.your_ip, ADDRESS);
    assert_eq!(repr.server_identifier, Some(SERVER));
    assert_eq!(repr.lease_duration, Some(86_313_600));
    assert_eq!(repr.subnet_mask, Some(Ipv4Addr::new(255, 255, 255, 0)));
    assert_eq!(repr.router, Some(GATEWAY));
    assert_eq!(option(dhcp, 6), Some(vec![10, 96, 0, 10, 1, 1, 1, 1]));
    assert_eq!(option(dhcp, 12), Some(b"vm-1".to_vec()));
    assert_eq!(option(dhcp, 15), Some(b"ns.svc.cluster.local".to_vec()));
    assert_eq!(option(dhcp, 26), Some(1450u16.to_be_bytes().to_vec()));
    let search = b"\x02ns\x03svc\x07cluster\x05local\0\x07cluster\x05local\0".to_vec();
    assert_eq!(option(dhcp, 119), Some(search));
    let routes = vec![16, 10, 244, 10, 244, 1, 1, 0, 10, 244, 1, 1];
    assert_eq!(option(dhcp, 121), Some(routes));
}

/// The message of a client that has, or wants, these addresses.
fn request_for(
    current: Ipv4Addr,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
) -> Vec<u8> {
    request(DhcpMessageType::Request, server, |dhcp| {
        dhcp[12..16].copy_from_slice(&current.octets());
        if let Some(requested) = requested {
            // In place of the client identifier, which is as long as it and padding.
            let at = dhcp
                .windows(2)
                .position(|pair| pair == [61, 7])
                .expect("an identifier");
            dhcp[at..at + 6].copy_from_slice(&[50, 4, 0, 0, 0, 0]);
            dhcp[at + 2..at + 6].copy_from_slice(&requested.octets());
            dhcp[at + 6..at + 9].fill(0);
        }
    })
}

#[test]
fn request_is_acknowledged() {
    let none = Ipv4Addr::UNSPECIFIED;
    for (current, requested, server) in [
        (none, None, None),
        (none, None, Some(SERVER)),
        (none, Some(ADDRESS), Some(SERVER)),
        (none, Some(ADDRESS), None),
        (ADDRESS, None, None),
    ] {
        let ack = answer(&responder(), &request_for(current, requested, server));
        let dhcp = unwrap_answer(&ack);
        assert_eq!(option(dhcp, 53), Some(vec![ACK]));
        assert_eq!(option(dhcp, 51), Some(LEASE_SECONDS.to_be_bytes().to_vec()));
        assert_eq!(dhcp[12..16], current.octets(), "ciaddr");
        assert_eq!(dhcp[16..20], ADDRESS.octets(), "yiaddr");
    }
}

/// A client that was somewhere else before starts anew, instead of waiting for its old address.
#[test]
fn request_for_another_address_is_refused() {
    let other = Ipv4Addr::new(192, 168, 1, 9);
    for (current, requested) in [(Ipv4Addr::UNSPECIFIED, Some(other)), (other, None)] {
        let nak = answer(&responder(), &request_for(current, requested, None));
        assert_eq!(nak[..6], [0xff; 6]);
        let dhcp = &nak[HEADERS_LEN..];
        assert_eq!(option(dhcp, 53), Some(vec![NAK]));
        assert_eq!(option(dhcp, 54), Some(SERVER.octets().to_vec()));
        assert_eq!((option(dhcp, 51), option(dhcp, 1)), (None, None));
        assert_eq!(dhcp[12..24], [0; 12], "no address");
    }
}

#[test]
fn inform_is_told_the_configuration_without_a_lease() {
    let client = Ipv4Addr::new(10, 244, 1, 77);
    let inform = request(DhcpMessageType::Inform, None, |dhcp| {
        dhcp[12..16].copy_from_slice(&client.octets());
    });
    let ack = answer(&responder(), &inform);
    let ip = Ipv4Packet::new_checked(&ack[ETHERNET_HEADER_LEN..]).expect("an IPv4 packet");
    assert_eq!(ip.dst_addr(), client);
    let dhcp = &ack[HEADERS_LEN..];
    assert_eq!(option(dhcp, 53), Some(vec![ACK]));
    assert_eq!((option(dhcp, 51), &dhcp[16..20]), (None, &[0; 4][..]));
    assert_eq!(option(dhcp, 6), Some(vec![10, 96, 0, 10, 1, 1, 1, 1]));
}

#[test]
fn a_renewal_is_a_request_to_the_server_or_to_all() {
    assert!(responder().serves(SERVER));
    assert!(responder().serves(Ipv4Addr::BROADCAST));
    assert!(!responder().serves(GATEWAY));
}

#[test]
fn another_client_is_answered_where_any_may_be() {
    const NESTED: [u8; 6] = [2, 9, 9, 9, 9, 9];
    let frame = request(DhcpMessageType::Discover, None, |dhcp| {
        dhcp[28..34].copy_from_slice(&NESTED);
    });
    let mut out = [0; MAX_ANSWER];
    assert_eq!(responder().answer(&frame, &mut out), Answer::Pass);
    let lease = DhcpLease {
        any_client: true,
        ..lease()
    };
    let responder = DhcpResponder::new(&lease, GUEST).expect("the lease can be expressed");
    let offer = answer(&responder, &frame);
    assert_eq!(offer[..6], NESTED);
    assert_eq!(offer[HEADERS_LEN + 28..HEADERS_LEN + 34], NESTED);
}

#[test]
fn others_are_not_answered() {
    let mut out = [0; MAX_ANSWER];
    let mut answer = |frame: Vec<u8>| responder().answer(&frame, &mut out);
    for message_type in [DhcpMessageType::Release, DhcpMessageType::Decline] {
        let frame = request(message_type, Some(SERVER), |_| {});
        assert_eq!(answer(frame), Answer::Silence, "{message_type:?}");
    }
    let other = request(DhcpMessageType::Request, Some(GATEWAY), |_| {});
    assert_eq!(answer(other), Answer::Pass, "another server was chosen");
    for (at, value) in [
        (0, 2),
        (1, 6),
        (2, 255),
        (24, 10),
        (33, 0xee),
        (236, 0),
        (242, 99),
    ] {
        let frame = request(DhcpMessageType::Discover, None, |dhcp| dhcp[at] = value);
        assert_eq!(answer(frame), Answer::Pass, "byte {at} set to {value}");
    }
    for len in 0..HEADERS_LEN + DHCP_HEADER_LEN + 3 {
        assert_eq!(
            answer(discover()[..len].to_vec()),
            Answer::Pass,
            "cut to {len} bytes"
        );
    }
}

#[test]
fn broadcast_is_honoured() {
    let frame = request(DhcpMessageType::Discover, None, |dhcp| dhcp[10] = 0x80);
    let offer = answer(&responder(), &frame);
    assert_eq!(offer[..6], [0xff; 6]);
    let ip = Ipv4Packet::new_checked(&offer[ETHERNET_HEADER_LEN..]).expect("an IPv4 packet");
    assert_eq!(ip.dst_addr(), Ipv4Addr::BROADCAST);
}

#[test]
fn small_answers_are_padded_and_short_buffers_refused() {
    let small = DhcpLease {
        routes: Vec::new(),
        dns: Vec::new(),
        hostname: None,
        domain: None,
        search: Vec::new(),
        ..lease()
    };
    let responder = DhcpResponder::new(&small, GUEST).expect("the lease can be expressed");
    let offer = answer(&responder, &discover());
    assert_eq!(offer.len(), HEADERS_LEN + DHCP_MIN_LEN);
    assert_eq!(option(unwrap_answer(&offer), 121), None);
    let mut short = vec![0; offer.len() - 1];
    assert_eq!(responder.answer(&discover(), &mut short), Answer::Silence);
}

#[test]
fn impossible_leases_are_refused() {
    let error = |lease: DhcpLease| DhcpResponder::new(&lease, GUEST).err();
    assert_eq!(
        error(DhcpLease {
            prefix_len: 33,
            ..lease()
        }),
        Some(LeaseError::Prefix(33))
    );
    for name in ["", "a..b", "x".repeat(64).as_str(), "ü.example"] {
        let bad = DhcpLease {
            search: vec![name.into()],
            ..lease()
        };
        assert_eq!(error(bad), Some(LeaseError::Name(name.into())));
    }
    let long = DhcpLease {
        search: vec!["a.very.long.name.example".into(); 60],
        ..lease()
    };
    assert!(matches!(error(long), Some(LeaseError::TooLong(_))));
}

#[test]
fn chosen_options_are_passed_on() {
    let mut lease = lease();
    lease.options = DhcpOptions {
        tftp_server_name: Some("tftp.example".into()),
        boot_file_name: Some("pxelinux.0".into()),
        ntp_servers: vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)],
        private_options: vec![(224, "one".into()), (254, "two".into())],
    };
    let responder = DhcpResponder::new(&lease, GUEST).expect("the lease can be expressed");
    let offer = answer(&responder, &discover());
    let dhcp = unwrap_answer(&offer);
    let expected: &[(u8, &[u8])] = &[
        (66, b"tftp.example"),
        (67, b"pxelinux.0"),
        (42, &[10, 0, 0, 1, 10, 0, 0, 2]),
        (224, b"one"),
        (254, b"two"),
    ];
    for &(code, value) in expected {
        assert_eq!(option(dhcp, code).as_deref(), Some(value), "option {code}");
    }
    for code in [0, 53, 223, 255] {
        lease.options.private_options = vec![(code, "x".into())];
        let error = DhcpResponder::new(&lease, GUEST).err();
        assert_eq!(error, Some(LeaseError::Private(code)));
    }
}

#[test]
fn long_lists_are_split() {
    let search = vec!["some.rather.long.example".to_owned(); 20];
    let lease = DhcpLease { search, ..lease() };
    let responder = DhcpResponder::new(&lease, GUEST).expect("the lease can be expressed");
    let offer = answer(&responder, &discover());
    let list = option(unwrap_answer(&offer), 119).expect("a search list");
    assert_eq!(list.len(), 20 * 26);
}

proptest! {
    #[test]
    fn random_frames_do_no_harm(frame in prop::collection::vec(any::<u8>(), 0..1514)) {
        let mut out = [0; MAX_ANSWER];
        prop_assert_eq!(responder().answer(&frame, &mut out), Answer::Pass);
    }

    #[test]
    fn spoiled_requests_do_no_harm(
        changes in prop::collection::vec((0usize..400, any::<u8>()), 0..8),
        len in 0usize..400,
    ) {
        let mut frame = discover();
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(len);
        let mut out = [0; MAX_ANSWER];
        if let Answer::Frame(len) = responder().answer(&frame, &mut out) {
            prop_assert!(len <= MAX_ANSWER);
        }
    }
}
