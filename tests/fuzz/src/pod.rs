//! Files that others leave in a pod for the launcher: the node agent's record of an interface, and `resolv.conf`; and
//! what an earlier run has left of how the interface was.

use devices::pod_net::dhcp::DhcpResponder;
use devices::virtio::net::testing::{GUEST, check_dhcp, dhcp_request};
use launcher::network::{kept_in_file, lease_of_files};

use crate::dhcp::answered;

/// Message type (RFC 2132, 9.6) of a DHCPDISCOVER.
const DISCOVER: [u8; 4] = [53, 1, 1, 255];

/// The record up to a zero byte, then `resolv.conf`. The guest is told what there is room for.
pub fn run(bytes: &[u8]) {
    for setting in kept_in_file(bytes).unwrap_or_default() {
        // By a name of one of the settings that are known, below the directory of settings.
        let name = setting.split(' ').next().unwrap_or_default();
        assert!(
            !name.starts_with('/') && !name.split('/').any(|part| part == ".."),
            "{name}"
        );
    }
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let record = parts.next().unwrap_or_default();
    let resolver = String::from_utf8_lossy(parts.next().unwrap_or_default());
    for subdomain in [None, Some("sub")] {
        let Some(mut lease) = lease_of_files(record, &resolver, subdomain) else {
            return;
        };
        lease.fit();
        let left = lease.fit();
        assert!(left.is_empty(), "left out the second time only: {left:?}");
        let responder = DhcpResponder::new(&lease, GUEST).expect("what fits can be told");
        let frame = dhcp_request(&DISCOVER);
        answered(
            |out| responder.answer(&frame, out),
            |answer| check_dhcp(answer, &lease),
        );
    }
}
