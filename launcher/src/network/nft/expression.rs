//! Rules in the terms of the kernel's virtual machine: load into register 1, compare, act.

use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_netfilter::nftables::{
    Cmp, DataAttribute, Expressions, Immediate, Meta, MetaKey, Operator, Payload, Register,
    Verdict, VerdictAttribute,
};
use rtnetlink::packet_core::DefaultNla;

use super::{Action, Condition, Family, Rule};
use crate::vmi::{Port, Protocol};

/// Bases of `payload` (`enum nft_payload_bases`).
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// Attributes and types of `nat` (`enum nft_nat_attributes`, `enum nft_nat_types`).
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFT_NAT_SNAT: u32 = 0;
const NFT_NAT_DNAT: u32 = 1;
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;

/// Verdict of `immediate` (`NF_DROP` of `linux/netfilter.h`).
const NF_DROP: u32 = 0;

/// Where the addresses are in the headers of IPv4 (RFC 791) and IPv6 (RFC 8200), bytes.
const SOURCE_V4: u32 = 12;
const DESTINATION_V4: u32 = 16;
const SOURCE_V6: u32 = 8;
const DESTINATION_V6: u32 = 24;

/// The first byte of IPv4 loopback addresses.
const LOOPBACK_V4: u8 = 127;

/// Bytes of an interface name (`IFNAMSIZ`).
const NAME_SIZE: usize = 16;

/// The expressions of a rule, with a counter before the action.
pub(super) fn of_rule(family: Family, rule: &Rule) -> Vec<Expressions> {
    let mut expressions: Vec<_> = rule
        .conditions
        .iter()
        .flat_map(|of| condition(family, of))
        .collect();
    expressions.push(other("counter", Vec::new()));
    match rule.action {
        Action::Drop => expressions.push(verdict(Verdict::Other(NF_DROP), None)),
        Action::Jump(chain) => expressions.push(verdict(Verdict::Jump, Some(chain))),
        Action::SetSource(address) => expressions.extend(nat(family, NFT_NAT_SNAT, address)),
        Action::SetDestination(address) => {
            expressions.extend(nat(family, NFT_NAT_DNAT, address));
        }
        Action::Masquerade => expressions.push(other("masq", Vec::new())),
    }
    expressions
}

fn condition(family: Family, condition: &Condition) -> Vec<Expressions> {
    match condition {
        Condition::InInterface(name) => meta_is(MetaKey::Iifname, interface(name)),
        Condition::OutInterface(name) => meta_is(MetaKey::Oifname, interface(name)),
        Condition::Source(IpAddr::V4(address)) => network_is(SOURCE_V4, &address.octets()),
        Condition::Source(IpAddr::V6(address)) => network_is(SOURCE_V6, &address.octets()),
        Condition::Destination(IpAddr::V4(address)) => {
            network_is(DESTINATION_V4, &address.octets())
        }
        Condition::Destination(IpAddr::V6(address)) => {
            network_is(DESTINATION_V6, &address.octets())
        }
        Condition::SourceIsLoopback => loopback(family, SOURCE_V4, SOURCE_V6),
        Condition::DestinationIsLoopback => loopback(family, DESTINATION_V4, DESTINATION_V6),
        Condition::Port(port) => port_is(*port),
    }
}

fn loopback(family: Family, v4: u32, v6: u32) -> Vec<Expressions> {
    match family {
        Family::V4 => network_is(v4, &[LOOPBACK_V4]),
        Family::V6 => network_is(v6, &Ipv6Addr::LOCALHOST.octets()),
    }
}

fn port_is(port: Port) -> Vec<Expressions> {
    let number = match port.protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => protocol::SCTP,
    };
    let mut expressions = meta_is(MetaKey::L4Proto, vec![number]);
    // The destination port is the second field of all three headers.
    expressions.extend(payload_is(TRANSPORT_HEADER, 2, &port.port.to_be_bytes()));
    expressions
}

/// Protocol numbers (IANA).
mod protocol {
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const SCTP: u8 = 132;
}

fn interface(name: &str) -> Vec<u8> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(NAME_SIZE, 0);
    padded
}

fn meta_is(key: MetaKey, value: Vec<u8>) -> Vec<Expressions> {
    let load = Expressions::Meta(vec![
        Meta::DestinationRegister(Register::Reg1),
        Meta::Key(key),
    ]);
    vec![load, is(value)]
}

fn network_is(offset: u32, value: &[u8]) -> Vec<Expressions> {
    payload_is(NETWORK_HEADER, offset, value)
}

fn payload_is(base: u32, offset: u32, value: &[u8]) -> Vec<Expressions> {
    let load = Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(value.len() as u32),
    ]);
    vec![load, is(value.to_vec())]
}

fn is(value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

fn verdict(code: Verdict, chain: Option<&str>) -> Expressions {
    let mut verdict = vec![VerdictAttribute::Code(code)];
    verdict.extend(chain.map(|chain| VerdictAttribute::Chain(chain.to_owned())));
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict)),
    ])
}

fn nat(family: Family, kind: u32, address: IpAddr) -> [Expressions; 2] {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let load = Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Reg1),
        Immediate::Data(DataAttribute::Value(bytes)),
    ]);
    let family = match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    };
    let attributes = vec![
        number(NFTA_NAT_TYPE, kind),
        number(NFTA_NAT_FAMILY, family),
        number(NFTA_NAT_REG_ADDR_MIN, Register::Reg1.into()),
    ];
    [load, other("nat", attributes)]
}

fn number(attribute: u16, value: u32) -> DefaultNla {
    DefaultNla::new(attribute, value.to_be_bytes().to_vec())
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expressions {
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes,
    }
}
