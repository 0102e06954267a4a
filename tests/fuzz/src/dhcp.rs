//! DHCPv4: requests of the guest, and leases that a pod's network suggests.

use std::net::Ipv4Addr;

use devices::pod_net::Answer;
use devices::pod_net::dhcp::{DhcpLease, DhcpOptions, DhcpResponder};
use devices::virtio::net::testing::{self, GUEST, check_dhcp, dhcp_request};

use crate::input::Input;

/// Longest answer, bytes: what the device has room for.
const MAX_ANSWER: usize = 1514;

/// Answers a frame. The first byte says what lease there is, and which protocol is spoken.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.u8();
    if kind & 2 != 0 {
        return crate::dhcpv6::run(kind, &mut input);
    }
    let lease = match kind & 1 {
        0 => testing::lease(),
        _ => lease(&mut input),
    };
    let Ok(responder) = DhcpResponder::new(&lease, GUEST) else {
        return;
    };
    let frame = match input.u8() & 1 {
        0 => input.take(2048).to_vec(),
        _ => dhcp_request(input.take(1400)),
    };
    answered(
        |out| responder.answer(&frame, out),
        |answer| check_dhcp(answer, &lease),
    );
}

/// Has a request answered, into as much room as the device has, into one byte less than the answer
/// needs, and twice.
pub(crate) fn answered(answer: impl Fn(&mut [u8]) -> Answer, check: impl Fn(&[u8])) {
    let mut out = [0xaa; MAX_ANSWER + 64];
    let Answer::Frame(len) = answer(&mut out[..MAX_ANSWER]) else {
        return;
    };
    assert!(len <= MAX_ANSWER && out[MAX_ANSWER..] == [0xaa; 64]);
    check(&out[..len]);
    let mut again = [0x55; MAX_ANSWER];
    assert_eq!(answer(&mut again), Answer::Frame(len));
    assert_eq!(out[..len], again[..len], "left over from what was there");
    let mut short = [0; MAX_ANSWER];
    assert_eq!(answer(&mut short[..len - 1]), Answer::Silence);
}

fn lease(input: &mut Input<'_>) -> DhcpLease {
    let address = |input: &mut Input<'_>| Ipv4Addr::from(input.u32());
    let routes = (0..input.u8()).map(|_| (address(input), input.u8(), address(input)));
    let routes = routes.collect();
    DhcpLease {
        address: address(input),
        prefix_len: input.u8(),
        server: testing::lease().server,
        router: (input.u8() & 1 != 0).then(|| address(input)),
        routes,
        dns: (0..input.u8()).map(|_| address(input)).collect(),
        hostname: (input.u8() & 1 != 0).then(|| name(input)),
        domain: (input.u8() & 1 != 0).then(|| name(input)),
        search: (0..input.below(16)).map(|_| name(input)).collect(),
        mtu: input.u16(),
        options: options(input),
        any_client: input.u8() & 1 != 0,
    }
}

pub(crate) fn name(input: &mut Input<'_>) -> String {
    let len = usize::from(input.u8());
    String::from_utf8_lossy(input.take(len)).into_owned()
}

fn options(input: &mut Input<'_>) -> DhcpOptions {
    DhcpOptions {
        tftp_server_name: (input.u8() & 1 != 0).then(|| name(input)),
        boot_file_name: (input.u8() & 1 != 0).then(|| name(input)),
        ntp_servers: (0..input.u8())
            .map(|_| Ipv4Addr::from(input.u32()))
            .collect(),
        private_options: (0..input.below(8))
            .map(|_| (input.u8(), name(input)))
            .collect(),
    }
}
