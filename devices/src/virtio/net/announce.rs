//! The frame by which the network learns that a guest is behind another port than it was: RARP, as other
//! hypervisors send it, since it needs no address but the guest's own (RFC 903). Bridges and switches go by its
//! sender; nobody answers it.

use std::fs::File;
use std::io::{self, Write};

/// The header before each frame on a TAP (virtio 1.2, 5.1.6); all zero: no offloads.
const TAP_HEADER: usize = 12;
/// A frame without its checksum is not shorter.
const MIN_FRAME: usize = 60;

const BROADCAST: [u8; 6] = [0xff; 6];
const ETHERTYPE_RARP: [u8; 2] = [0x80, 0x35];
/// Ethernet, IPv4, address lengths, "reverse request".
const RARP: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 3];
const NO_ADDRESS: [u8; 4] = [0; 4];

/// Sends it as `mac`.
pub(super) fn send(mut tap: &File, mac: [u8; 6]) -> io::Result<()> {
    tap.write_all(&packet(mac))
}

fn packet(mac: [u8; 6]) -> Vec<u8> {
    let mut packet = vec![0; TAP_HEADER];
    for part in [
        &BROADCAST[..],
        &mac,
        &ETHERTYPE_RARP,
        &RARP,
        &mac,
        &NO_ADDRESS,
        &mac,
        &NO_ADDRESS,
    ] {
        packet.extend_from_slice(part);
    }
    packet.resize(TAP_HEADER + MIN_FRAME, 0);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_a_broadcast_of_the_guest() {
        let mac = [2, 0, 0, 0, 0, 7];
        let packet = packet(mac);
        assert_eq!(packet.len(), 72);
        assert!(packet[..12].iter().all(|byte| *byte == 0));
        assert_eq!(packet[12..18], [0xff; 6]);
        assert_eq!(packet[18..24], mac);
        assert_eq!(packet[24..34], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(packet[34..40], mac);
    }
}
