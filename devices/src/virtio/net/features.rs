//! Feature bits, and what they mean for the TAP device.

use crate::tap::{HEADER_SIZE, Offloads};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
};

/// What every NIC offers. Not `CTRL_MAC_ADDR`: nothing filters by MAC, so a driver that changes
/// its address has no one to tell. Not `CTRL_VLAN`: all VLANs pass.
const ALWAYS: &[u32] = &[
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
];

/// What the kernel does behind a TAP.
const OFFLOADS: &[u32] = &[
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
];

/// UDP segmentation, when kernel and TAP can.
const USO: &[u32] = &[
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_USO,
];

/// The guest offloads and what each asks of the TAP device.
const GUEST_OFFLOADS: &[(u32, Offloads)] = &[
    (VIRTIO_NET_F_GUEST_CSUM, Offloads::CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, Offloads::TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, Offloads::TSO6),
    (VIRTIO_NET_F_GUEST_ECN, Offloads::TSO_ECN),
    (VIRTIO_NET_F_GUEST_USO4, Offloads::USO4),
    (VIRTIO_NET_F_GUEST_USO6, Offloads::USO6),
];

/// Longest IP packet, bytes: what an unsegmented packet may have.
const MAX_IP_PACKET: usize = 65_535;
/// Ethernet header, bytes.
pub(super) const ETHERNET: usize = 14;
/// VLAN tag, bytes.
const VLAN: usize = 4;

/// Largest packet in either direction, bytes, with virtio and Ethernet headers.
pub(super) const MAX_PACKET: usize = HEADER_SIZE + ETHERNET + VLAN + MAX_IP_PACKET;

/// Feature bit `bit` as a mask.
pub(super) const fn mask(bit: u32) -> u64 {
    1 << bit
}

/// Whether `features` has `bit`.
pub(super) const fn has(features: u64, bit: u32) -> bool {
    features & mask(bit) != 0
}

fn masks(bits: &[u32]) -> u64 {
    bits.iter().fold(0, |all, &bit| all | mask(bit))
}

/// What the backend of a NIC can do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Abilities {
    /// Checksums and TCP segmentation.
    pub(super) offloads: bool,
    /// UDP segmentation.
    pub(super) uso: bool,
    pub(super) multi_queue: bool,
}

/// The features a NIC offers.
pub(super) fn offered(abilities: Abilities) -> u64 {
    let wanted = |wanted, bits| if wanted { masks(bits) } else { 0 };
    masks(ALWAYS)
        | wanted(abilities.offloads, OFFLOADS)
        | wanted(abilities.uso, USO)
        | wanted(abilities.multi_queue, &[VIRTIO_NET_F_MQ])
}

/// The bits that `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET` may carry.
pub(super) fn guest_offloads(features: u64) -> u64 {
    let all = GUEST_OFFLOADS
        .iter()
        .fold(0, |all, &(bit, _)| all | mask(bit));
    features & all
}

/// What the TAP device may pass to a guest with these offloads. Offloads without what they depend
/// on (5.1.3.1), which a driver must not ask for and the kernel refuses, are left out.
pub(super) fn tap_offloads(features: u64) -> Offloads {
    let tso = has(features, VIRTIO_NET_F_GUEST_TSO4) || has(features, VIRTIO_NET_F_GUEST_TSO6);
    let uso = has(features, VIRTIO_NET_F_GUEST_USO4) && has(features, VIRTIO_NET_F_GUEST_USO6);
    let possible = |bit| match bit {
        VIRTIO_NET_F_GUEST_ECN => tso,
        VIRTIO_NET_F_GUEST_USO4 | VIRTIO_NET_F_GUEST_USO6 => uso,
        _ => true,
    };
    if !has(features, VIRTIO_NET_F_GUEST_CSUM) {
        return Offloads::default();
    }
    GUEST_OFFLOADS
        .iter()
        .filter(|&&(bit, _)| has(features, bit) && possible(bit))
        .fold(Offloads::default(), |all, &(_, offload)| all.with(offload))
}

/// Largest packet that the TAP device can have for a guest with these features, bytes, all headers
/// included. VLAN tags are not counted without segmentation offload: drivers do not make room for
/// them in that case (5.1.6.3.1), and a longer packet is found out when it is read.
pub(super) fn largest_packet(features: u64, mtu: u16) -> usize {
    let offloads = guest_offloads(features) & !mask(VIRTIO_NET_F_GUEST_CSUM);
    if offloads != 0 {
        MAX_PACKET
    } else {
        HEADER_SIZE + ETHERNET + usize::from(mtu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_without_their_ground_are_left_out() {
        let csum = mask(VIRTIO_NET_F_GUEST_CSUM);
        let ecn = mask(VIRTIO_NET_F_GUEST_ECN);
        let tso4 = mask(VIRTIO_NET_F_GUEST_TSO4);
        let uso4 = mask(VIRTIO_NET_F_GUEST_USO4);
        let uso6 = mask(VIRTIO_NET_F_GUEST_USO6);
        assert_eq!(tap_offloads(tso4 | ecn), Offloads::default());
        assert_eq!(tap_offloads(csum | ecn | uso4), Offloads::CSUM);
        let tso = Offloads::CSUM.with(Offloads::TSO4);
        assert_eq!(tap_offloads(csum | tso4 | ecn), tso.with(Offloads::TSO_ECN));
        let uso = Offloads::CSUM.with(Offloads::USO4).with(Offloads::USO6);
        assert_eq!(tap_offloads(csum | uso4 | uso6), uso);
    }

    #[test]
    fn packets_are_as_large_as_the_features_allow() {
        assert_eq!(largest_packet(mask(VIRTIO_NET_F_GUEST_CSUM), 1500), 1526);
        assert_eq!(largest_packet(mask(VIRTIO_NET_F_GUEST_TSO4), 1500), 65_565);
    }
}
