//! Rules in the terms of the kernel's virtual machine: load into register 1, compare, act.

use std::net::IpAddr;

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

/// Bytes of an interface name (`IFNAMSIZ`).
const NAME_SIZE: usize = 16;

/// The expressions of a rule, with a counter before the action.
pub(super) fn of_rule(family: Family, rule: &Rule) -> Vec<Expressions> {
    let mut expressions: Vec<_> = rule.conditions.iter().flat_map(condition).collect();
    expressions.push(other("counter", Vec::new()));
    match rule.action {
        Action::Jump(chain) => expressions.push(jump(chain)),
        Action::SetSource(address) => expressions.extend(nat(family, NFT_NAT_SNAT, address)),
        Action::SetDestination(address) => {
            expressions.extend(nat(family, NFT_NAT_DNAT, address));
        }
        Action::Masquerade => expressions.push(other("masq", Vec::new())),
    }
    expressions
}

fn condition(condition: &Condition) -> Vec<Expressions> {
    match condition {
        Condition::InInterface(name) => meta_is(MetaKey::Iifname, interface(name)),
        Condition::OutInterface(name) => meta_is(MetaKey::Oifname, interface(name)),
        Condition::Source(IpAddr::V4(address)) => network_is(12, &address.octets()),
        Condition::Source(IpAddr::V6(address)) => network_is(8, &address.octets()),
        Condition::Destination(IpAddr::V4(address)) => network_is(16, &address.octets()),
        Condition::Destination(IpAddr::V6(address)) => network_is(24, &address.octets()),
        Condition::Port(port) => port_is(*port),
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

fn jump(chain: &str) -> Expressions {
    let verdict = vec![
        VerdictAttribute::Code(Verdict::Jump),
        VerdictAttribute::Chain(chain.to_owned()),
    ];
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
