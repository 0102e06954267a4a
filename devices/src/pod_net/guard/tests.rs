//! Frames that a guest may and may not send, in all their wrappings.

use proptest::prelude::*;

use super::*;
use crate::pod_net::frame::{self, Bytes};
use crate::virtio::net::outgoing::{MAX_LOOK, PEEK};

const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const OTHER: [u8; 6] = [0x52, 0x54, 0, 1, 2, 4];
const PLAIN: [u8; HEADER_SIZE] = [0; HEADER_SIZE];

/// What the transmit path decides, with what it knows at first or with more.
fn judge_as(guard: &Guard, header: &[u8; HEADER_SIZE], data: &[u8]) -> Option<Offence> {
    let look = |copied: usize| {
        let bytes = Bytes::new(&data[..data.len().min(copied)], data.len());
        let frame = frame::parse(bytes)?;
        guard.judge(header, bytes, &frame)
    };
    let result = match look(PEEK) {
        Err(Stop::More) => look(MAX_LOOK),
        result => result,
    };
    match result {
        Ok(offence) => offence,
        Err(Stop::End(end)) => guard.judge_cut(header, Bytes::new(data, data.len()), end),
        Err(Stop::More | Stop::Hidden) => Some(Offence::Impersonation),
    }
}

fn judge(data: &[u8]) -> Option<Offence> {
    judge_as(&Guard::new(None), &PLAIN, data)
}

fn checked(data: &[u8]) -> Option<Offence> {
    judge_as(&Guard::new(Some(GUEST)), &PLAIN, data)
}

fn ethernet(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [[0xff; 6], GUEST].concat();
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 0]);
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet; `options` in units of four bytes, `fragment` the field with flags and offset.
fn ipv4(protocol: u8, options: usize, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let len = 20 + 4 * options + payload.len();
    let mut packet = vec![0x45 + options as u8, 0];
    packet.extend((len as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 0, 2, 2, 255, 255, 255, 255]);
    packet.extend(vec![1; 4 * options]);
    packet.extend(payload);
    packet
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend([0xfe; 32]);
    packet.extend(payload);
    packet
}

/// An extension header of `8 + 8 * units` bytes before `payload`.
fn extension(next: u8, units: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, units];
    header.extend(vec![0; 6 + 8 * usize::from(units)]);
    header.extend(payload);
    header
}

fn fragment(next: u8, offset_and_more: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend(offset_and_more.to_be_bytes());
    header.extend([1, 2, 3, 4]);
    header.extend(payload);
    header
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    let mut datagram = [from.to_be_bytes(), to.to_be_bytes()].concat();
    datagram.extend([0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    datagram
}

fn icmpv6(kind: u8) -> Vec<u8> {
    let mut message = vec![0; 24];
    message[0] = kind;
    message
}

#[test]
fn what_servers_and_routers_say_is_dropped() {
    let bad = Some(Offence::Impersonation);
    let v4 = |packet: Vec<u8>| judge(&ethernet(&[], 0x0800, &packet));
    let v6 = |packet: Vec<u8>| judge(&ethernet(&[], 0x86dd, &packet));
    for from in [67, 68, 5353] {
        assert_eq!(v4(ipv4(17, 0, 0, &udp(from, 68))), bad, "from {from}");
    }
    assert_eq!(v6(ipv6(17, &udp(547, 546))), bad);
    assert_eq!(v6(ipv6(58, &icmpv6(134))), bad);
    assert_eq!(v6(ipv6(58, &icmpv6(137))), bad);
    assert_eq!(v4(ipv4(1, 0, 0, &[5, 0, 0, 0])), bad);

    assert_eq!(v4(ipv4(17, 0, 0, &udp(68, 67))), None);
    assert_eq!(v4(ipv4(17, 0, 0, &udp(67, 67))), None);
    assert_eq!(
        v4(ipv4(17, 0, 0, &udp(547, 546))),
        None,
        "ports of the other IP"
    );
    assert_eq!(v6(ipv6(17, &udp(546, 547))), None);
    assert_eq!(v6(ipv6(17, &udp(67, 68))), None, "ports of the other IP");
    assert_eq!(v4(ipv4(6, 0, 0, &udp(67, 68))), None, "TCP");
    assert_eq!(v4(ipv4(1, 0, 0, &[8, 0, 0, 0])), None);
    assert_eq!(v4(ipv4(58, 0, 0, &icmpv6(134))), None);
    for kind in [128, 129, 133, 135, 136, 143] {
        assert_eq!(v6(ipv6(58, &icmpv6(kind))), None, "ICMPv6 type {kind}");
    }
}

#[test]
fn loopback_addresses_do_not_leave() {
    const ADDRESSES: [usize; 2] = [12, 16];
    const ADDRESSES6: [usize; 2] = [8, 24];
    let bad = Some(Offence::Impersonation);
    let ours = [127, 0, 0, 1];
    for (tags, fragment) in [
        (&[][..], 0),
        (&[0x8100; 4], 0),
        (&[], 1),
        (&[0x88a8], 0x2000),
    ] {
        let packet = ipv4(6, 2, fragment, &[0; 20]);
        assert_eq!(judge(&ethernet(tags, 0x0800, &packet)), None);
        for at in ADDRESSES {
            for address in [ours, [127, 255, 255, 254]] {
                let mut packet = packet.clone();
                packet[at..at + 4].copy_from_slice(&address);
                assert_eq!(
                    judge(&ethernet(tags, 0x0800, &packet)),
                    bad,
                    "{tags:x?} {at}"
                );
                assert_eq!(judge(&ethernet(tags, 0x88b5, &packet)), None, "no packet");
            }
        }
        let packet = ipv6(60, &extension(6, 1, &[0; 20]));
        assert_eq!(judge(&ethernet(tags, 0x86dd, &packet)), None);
        for at in ADDRESSES6 {
            let mut packet = packet.clone();
            packet[at..at + 16].copy_from_slice(&1_u128.to_be_bytes());
            assert_eq!(
                judge(&ethernet(tags, 0x86dd, &packet)),
                bad,
                "{tags:x?} {at}"
            );
            packet[at + 15] = 0;
            assert_eq!(
                judge(&ethernet(tags, 0x86dd, &packet)),
                None,
                "no address yet"
            );
        }
    }
    let mut cut = ethernet(&[], 0x0800, &ipv4(6, 0, 0, &[]));
    cut.truncate(14 + 19);
    assert_eq!(judge(&cut), None, "no header");
    // Nor is the address written by the kernel where a checksum should be.
    let mut header = PLAIN;
    (header[0], header[6], header[8]) = (1, 14, 16);
    let guard = Guard::new(None);
    assert_eq!(
        judge_as(
            &guard,
            &header,
            &ethernet(&[], 0x0800, &ipv4(6, 0, 0, &[0; 20]))
        ),
        bad
    );
}

#[test]
fn wrappings_do_not_help() {
    let bad = Some(Offence::Impersonation);
    let offer = ipv4(17, 10, 0, &udp(67, 68));
    let advertisement = ipv6(58, &icmpv6(134));
    for tags in [&[0x8100][..], &[0x88a8, 0x8100], &[0x9100], &[0x8100; 4]] {
        assert_eq!(judge(&ethernet(tags, 0x0800, &offer)), bad, "{tags:x?}");
        assert_eq!(
            judge(&ethernet(tags, 0x86dd, &advertisement)),
            bad,
            "{tags:x?}"
        );
        assert_eq!(judge(&ethernet(tags, 0x88b5, &offer)), None, "{tags:x?}");
    }
    assert_eq!(judge(&ethernet(&[0x8100; 5], 0x88b5, &offer)), bad);

    for kind in [0, 43, 60, 135, 139, 140] {
        for units in [0, 1, 100] {
            let hidden = ipv6(kind, &extension(58, units, &icmpv6(134)));
            assert_eq!(
                judge(&ethernet(&[], 0x86dd, &hidden)),
                bad,
                "{kind} {units}"
            );
            let fine = ipv6(kind, &extension(58, units, &icmpv6(128)));
            assert_eq!(judge(&ethernet(&[], 0x86dd, &fine)), None, "{kind} {units}");
        }
    }
    // An authentication header counts in units of four bytes.
    let mut signed = extension(58, 0, &[]);
    signed[1] = 4;
    signed.extend([0; 16]);
    signed.extend(icmpv6(134));
    assert_eq!(judge(&ethernet(&[], 0x86dd, &ipv6(51, &signed))), bad);

    let chain = (0..20).fold(icmpv6(134), |inner, n| {
        extension(if n == 0 { 58 } else { 60 }, 0, &inner)
    });
    assert_eq!(judge(&ethernet(&[], 0x86dd, &ipv6(60, &chain))), bad);
    // Longer than anybody looks at, whatever it carries.
    let chain = (0..200).fold(icmpv6(128), |inner, n| {
        extension(if n == 0 { 58 } else { 60 }, 0, &inner)
    });
    assert_eq!(judge(&ethernet(&[], 0x86dd, &ipv6(60, &chain))), bad);
}

#[test]
fn fragments_do_not_help() {
    let bad = Some(Offence::Impersonation);
    let v4 = |packet: Vec<u8>| judge(&ethernet(&[], 0x0800, &packet));
    let v6 = |packet: Vec<u8>| judge(&ethernet(&[], 0x86dd, &packet));
    const MORE: u16 = 0x2000;
    assert_eq!(v4(ipv4(17, 0, MORE, &udp(67, 68))), bad);
    assert_eq!(v4(ipv4(17, 0, MORE, &udp(67, 53))), None);
    assert_eq!(
        v4(ipv4(17, 0, MORE, &[0, 67])),
        bad,
        "no ports in the first fragment"
    );
    assert_eq!(
        v4(ipv4(17, 0, MORE | 1, &udp(67, 68))),
        None,
        "a later fragment"
    );

    assert_eq!(v6(ipv6(44, &fragment(17, 1, &udp(547, 546)))), bad);
    assert_eq!(
        v6(ipv6(44, &fragment(17, 0, &udp(547, 546)))),
        bad,
        "atomic"
    );
    assert_eq!(v6(ipv6(44, &fragment(17, 1, &udp(547, 53)))), None);
    assert_eq!(
        v6(ipv6(44, &fragment(17, 8, &udp(547, 546)))),
        None,
        "a later fragment"
    );
    assert_eq!(
        v6(ipv6(44, &fragment(58, 1, &icmpv6(135)))),
        bad,
        "RFC 6980"
    );
    assert_eq!(v6(ipv6(44, &fragment(58, 0, &icmpv6(135)))), None, "atomic");
    assert_eq!(v6(ipv6(44, &fragment(60, 1, &extension(58, 0, &[])))), bad);
    // Padding behind the packet's end is not its payload.
    let mut padded = ipv6(44, &fragment(60, 1, &extension(17, 0, &[])));
    padded.extend(udp(1, 53));
    assert_eq!(v6(padded), bad);
    let mut padded = ipv4(17, 0, MORE, &[0, 1]);
    padded.extend([0, 53, 0, 0]);
    assert_eq!(v4(padded), bad);
}

#[test]
fn checksums_are_not_written_over_headers() {
    let with = |start: u16, offset: u16, data: &[u8]| {
        let mut header = PLAIN;
        header[0] = 1;
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        judge_as(&Guard::new(None), &header, data)
    };
    let bad = Some(Offence::Impersonation);
    let v4 = ethernet(&[], 0x0800, &ipv4(17, 0, 0, &udp(67, 53)));
    assert_eq!(with(34, 6, &v4), None, "UDP's own");
    assert_eq!(with(34, 2, &v4), bad, "the port");
    assert_eq!(with(20, 3, &v4), bad, "the protocol");
    assert_eq!(with(u16::MAX, u16::MAX, &v4), None, "refused by the kernel");
    let tcp = ethernet(&[], 0x86dd, &ipv6(6, &[0; 20]));
    assert_eq!(with(54, 16, &tcp), None);
    assert_eq!(with(0, 12, &tcp), bad, "the ethertype");
    let unknown = ethernet(&[], 0x88b5, &[0; 40]);
    assert_eq!(with(0, 12, &unknown), bad);
    assert_eq!(with(14, 2, &unknown), None);
}

fn arp(sender: [u8; 6]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 2];
    packet.extend(sender);
    packet.extend([10, 0, 2, 2, 0, 0, 0, 0, 0, 0, 10, 0, 2, 1]);
    packet
}

#[test]
fn other_mac_addresses_are_dropped_where_they_are_checked() {
    let bad = Some(Offence::Spoof);
    let mut frame = ethernet(&[], 0x88b5, &[0; 50]);
    assert_eq!(checked(&frame), None);
    frame[11] ^= 1;
    assert_eq!(checked(&frame), bad);
    assert_eq!(checked(&frame[..14]), bad);
    assert_eq!(judge(&frame), None, "not checked");

    assert_eq!(checked(&ethernet(&[], 0x0806, &arp(GUEST))), None);
    assert_eq!(checked(&ethernet(&[], 0x0806, &arp(OTHER))), bad);
    assert_eq!(checked(&ethernet(&[0x8100], 0x0806, &arp(OTHER))), bad);
    assert_eq!(
        judge(&ethernet(&[], 0x0806, &arp(OTHER))),
        None,
        "not checked"
    );
    let mut token_ring = arp(GUEST);
    token_ring[1] = 6;
    assert_eq!(checked(&ethernet(&[], 0x0806, &token_ring)), bad);
}

#[test]
fn other_mac_addresses_in_neighbour_discovery_are_dropped_where_they_are_checked() {
    let message = |kind: u8, options_at: usize, option: u8, mac: [u8; 6]| {
        let mut message = vec![0; options_at];
        message[0] = kind;
        // A nonce before it (RFC 3971), to be walked over.
        message.extend([14, 1, 1, 2, 3, 4, 5, 6]);
        message.extend([option, 1]);
        message.extend(mac);
        ethernet(&[], 0x86dd, &ipv6(58, &message))
    };
    for (kind, at, option) in [(133, 8, 1), (135, 24, 1), (136, 24, 2)] {
        assert_eq!(checked(&message(kind, at, option, GUEST)), None, "{kind}");
        let spoofed = message(kind, at, option, OTHER);
        assert_eq!(checked(&spoofed), Some(Offence::Spoof), "{kind}");
        assert_eq!(judge(&spoofed), None, "{kind} not checked");
        let packet = ipv6(60, &extension(58, 8, &spoofed[54..]));
        let wrapped = ethernet(&[0x8100], 0x86dd, &packet);
        assert_eq!(checked(&wrapped), Some(Offence::Spoof), "{kind} wrapped");
    }
    let endless = [&vec![135, 0][..], &[0; 22], &[14, 0, 1, 1]].concat();
    assert_eq!(checked(&ethernet(&[], 0x86dd, &ipv6(58, &endless))), None);
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let ethertype = prop::sample::select(vec![0x0800u16, 0x0806, 0x86dd, 0x8100, 0x88a8]);
    let payload = prop::collection::vec(
        prop_oneof![
            any::<u8>(),
            prop::sample::select(vec![0u8, 17, 43, 44, 58, 60, 0x45, 0x60])
        ],
        0..200,
    );
    (ethertype, payload).prop_map(|(kind, payload)| ethernet(&[], kind, &payload))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Nothing panics, and what the first look decides does not depend on the bytes behind it.
    #[test]
    fn a_short_look_says_the_same_as_a_long_one(data in any_frame(), check in any::<bool>()) {
        let guard = Guard::new(check.then_some(GUEST));
        let look = |copied: usize| {
            let bytes = Bytes::new(&data[..data.len().min(copied)], data.len());
            frame::parse(bytes).and_then(|frame| guard.judge(&PLAIN, bytes, &frame))
        };
        let long = look(usize::MAX);
        prop_assert_ne!(long, Err(Stop::More));
        match look(PEEK) {
            Err(Stop::More) => {}
            short => prop_assert_eq!(short, long),
        }
    }

    /// However extension headers are stacked, an advertisement at their end is found.
    #[test]
    fn advertisements_are_found_behind_any_headers(
        headers in prop::collection::vec((prop::sample::select(vec![0u8, 43, 60, 135, 139, 140]), 0u8..6), 0..12),
        tags in prop::collection::vec(prop::sample::select(vec![0x8100u16, 0x88a8, 0x9100]), 0..5),
        more in any::<bool>(),
    ) {
        let mut next = 58;
        let mut packet = icmpv6(134);
        for &(kind, units) in &headers {
            packet = extension(next, units, &packet);
            next = kind;
        }
        packet = fragment(next, u16::from(more), &packet);
        let frame = ethernet(&tags, 0x86dd, &ipv6(44, &packet));
        prop_assert_eq!(judge(&frame), Some(Offence::Impersonation));
    }
}
