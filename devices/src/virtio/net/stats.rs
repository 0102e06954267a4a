//! Counters of a NIC: one set per queue pair, written by its thread only.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::pod_net::answers::Protocol;
use crate::pod_net::guard::Offence;
use serde::{Deserialize, Serialize};

/// Totals of a NIC since it was made. Received means received by the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type", rename = "net")]
pub struct NetStats {
    /// Packets received, answers made here included.
    pub rx_packets: u64,
    /// Bytes received, without the virtio header.
    pub rx_bytes: u64,
    /// Packets not received because the link was down or the guest's buffers were too small.
    pub rx_drops: u64,
    /// Failed reads of the TAP device, and receive buffers that could not be used.
    pub rx_errors: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent, without the virtio header.
    pub tx_bytes: u64,
    /// Packets not sent because the link was down or the TAP device was busy.
    pub tx_drops: u64,
    /// Packets that are no packets, or that the TAP device refused.
    pub tx_errors: u64,
    /// DHCPv4 requests answered.
    pub dhcp_replies: u64,
    /// DHCPv6 requests answered.
    pub dhcpv6_replies: u64,
    /// Router advertisements given to the guest.
    pub router_advertisements: u64,
    /// Packets not sent because they were of a kind that servers and routers send.
    pub impersonation_drops: u64,
    /// Packets not sent because of another MAC address than the NIC's.
    pub spoof_drops: u64,
    /// Whether the guest is told that there is a link.
    pub link_up: bool,
}

/// A counter with one writer, which therefore needs no atomic addition.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        let value = self.0.load(Ordering::Relaxed).wrapping_add(count);
        self.0.store(value, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of one queue pair, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct PairCounters {
    pub(super) rx_packets: Counter,
    pub(super) rx_bytes: Counter,
    pub(super) rx_drops: Counter,
    pub(super) rx_errors: Counter,
    pub(super) tx_packets: Counter,
    pub(super) tx_bytes: Counter,
    pub(super) tx_drops: Counter,
    pub(super) tx_errors: Counter,
    pub(super) dhcp_replies: Counter,
    pub(super) dhcpv6_replies: Counter,
    pub(super) router_advertisements: Counter,
    pub(super) impersonation_drops: Counter,
    pub(super) spoof_drops: Counter,
}

impl PairCounters {
    /// The counter of this protocol's answers.
    pub(super) fn answers(&self, protocol: Protocol) -> &Counter {
        match protocol {
            Protocol::Dhcpv4 => &self.dhcp_replies,
            Protocol::Dhcpv6 => &self.dhcpv6_replies,
            Protocol::Router => &self.router_advertisements,
        }
    }

    /// The counter of packets that the guard keeps in for this.
    pub(super) fn drops_for(&self, offence: Offence) -> &Counter {
        match offence {
            Offence::Impersonation => &self.impersonation_drops,
            Offence::Spoof => &self.spoof_drops,
        }
    }

    /// Adds these to `total`.
    pub(super) fn add_to(&self, total: &mut NetStats) {
        total.rx_packets += self.rx_packets.get();
        total.rx_bytes += self.rx_bytes.get();
        total.rx_drops += self.rx_drops.get();
        total.rx_errors += self.rx_errors.get();
        total.tx_packets += self.tx_packets.get();
        total.tx_bytes += self.tx_bytes.get();
        total.tx_drops += self.tx_drops.get();
        total.tx_errors += self.tx_errors.get();
        total.dhcp_replies += self.dhcp_replies.get();
        total.dhcpv6_replies += self.dhcpv6_replies.get();
        total.router_advertisements += self.router_advertisements.get();
        total.impersonation_drops += self.impersonation_drops.get();
        total.spoof_drops += self.spoof_drops.get();
    }
}
