//! DHCPv6 and router solicitations.

use std::net::Ipv6Addr;

use devices::pod_net::ipv6::{Ipv6Lease, Ipv6Responder};
use devices::virtio::net::testing::{self, GATEWAY, GUEST, check_ipv6};
use smoltcp::wire::IpProtocol;

use crate::dhcp::{answered, name};
use crate::input::Input;

fn lease(input: &mut Input<'_>) -> Ipv6Lease {
    let address = |input: &mut Input<'_>| Ipv6Addr::from_bits(input.u64().into());
    Ipv6Lease {
        address: address(input),
        prefix_len: input.u8(),
        gateway_mac: GATEWAY,
        dns: (0..input.u8()).map(|_| address(input)).collect(),
        search: (0..input.below(16)).map(|_| name(input)).collect(),
        mtu: input.u16(),
        router_advertisements: true,
    }
}

/// Answers a frame, or a message around which there is one. See [`crate::dhcp::run`].
pub(crate) fn run(kind: u8, input: &mut Input<'_>) {
    let lease = match kind & 1 {
        0 => testing::lease6(),
        _ => lease(input),
    };
    let Ok(responder) = Ipv6Responder::new(&lease) else {
        return;
    };
    let frame = match input.u8() & 3 {
        0 => input.take(2048).to_vec(),
        1 => wrap(
            IpProtocol::Icmpv6,
            &[&[133, 0, 0, 0], input.take(64)].concat(),
        ),
        _ => wrap(IpProtocol::Udp, &udp(input.take(1400))),
    };
    let check = |answer: &[u8]| {
        check_ipv6(answer);
    };
    answered(|out| responder.answer_dhcp(&frame, out), check);
    answered(|out| responder.answer_solicitation(&frame, out), check);
}

fn udp(message: &[u8]) -> Vec<u8> {
    let len = (8 + message.len()) as u16;
    let mut udp = vec![0x02, 0x22, 0x02, 0x23];
    udp.extend(len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(message);
    udp
}

/// A frame of the guest to all servers.
fn wrap(protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let from = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    let mut frame = vec![0x33, 0x33, 0, 1, 0, 2];
    frame.extend(GUEST);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([u8::from(protocol), 255]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(payload);
    frame
}
