//! nftables as far as address translation needs it: tables as data, given to the kernel by netlink.

mod expression;
mod socket;

use std::io;
use std::net::IpAddr;

use netlink_packet_netfilter::nftables::ListAttribute;
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, HookNumber, InetHookNumber,
};
use netlink_packet_netfilter::nftables::{RuleAttribute, RuleMessage};
use netlink_packet_netfilter::nftables::{TableAttribute, TableMessage};

use self::socket::NftSocket;
use crate::vmi::Port;

/// A protocol family's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// A table with its chains and rules.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) family: Family,
    pub(super) name: String,
    pub(super) chains: Vec<Chain>,
    pub(super) rules: Vec<Rule>,
}

/// A chain of rules.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    /// Where packets come from; `None`: from jumps.
    pub(super) hook: Option<Hook>,
}

/// Where the kernel hands packets to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// Of what arrives, as it was on the wire: before connections are tracked and translated back.
    Raw,
    PreRouting,
    Output,
    PostRouting,
}

/// A rule: what it does to packets that all conditions hold for.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) chain: &'static str,
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

/// What a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    InInterface(String),
    OutInterface(String),
    Source(IpAddr),
    Destination(IpAddr),
    /// 127.0.0.0/8 (RFC 1122, section 3.2.1.3), or `::1` (RFC 4291, section 2.5.3).
    SourceIsLoopback,
    /// The same of the destination.
    DestinationIsLoopback,
    Port(Port),
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Drop,
    Jump(&'static str),
    SetSource(IpAddr),
    SetDestination(IpAddr),
    /// The source becomes the address of the interface that the packet leaves by.
    Masquerade,
}

/// Creates `table`, in place of one of the same name.
pub(super) fn create(table: &Table) -> io::Result<()> {
    let mut socket = NftSocket::open()?;
    let named = || table_message(&table.name);
    let mut messages = vec![
        NfTablesMessage::NewTable(named()),
        NfTablesMessage::DeleteTable(named()),
        NfTablesMessage::NewTable(named()),
    ];
    messages.extend(table.chains.iter().map(|chain| new_chain(table, chain)));
    messages.extend(table.rules.iter().map(|rule| new_rule(table, rule)));
    socket.run(table.family, messages)
}

/// Deletes the table `name` of both families, if it is there.
pub(super) fn delete(name: &str) -> io::Result<()> {
    for family in [Family::V4, Family::V6] {
        let message = NfTablesMessage::DeleteTable(table_message(name));
        match NftSocket::open().and_then(|mut socket| socket.run(family, vec![message])) {
            // No such table, or a kernel without nftables.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::Unsupported
                ) => {}
            result => result?,
        }
    }
    Ok(())
}

fn table_message(name: &str) -> TableMessage {
    TableMessage {
        attributes: vec![TableAttribute::Name(name.to_owned())],
    }
}

fn new_chain(table: &Table, chain: &Chain) -> NfTablesMessage {
    let mut attributes = vec![
        ChainAttribute::Table(table.name.clone()),
        ChainAttribute::Name(chain.name.to_owned()),
    ];
    if let Some(hook) = chain.hook {
        // The priorities that such chains have everywhere (NF_IP_PRI_RAW, _NAT_DST and _NAT_SRC).
        let (kind, number, priority) = match hook {
            Hook::Raw => ("filter", InetHookNumber::PreRouting, -300_i32),
            Hook::PreRouting => ("nat", InetHookNumber::PreRouting, -100),
            Hook::Output => ("nat", InetHookNumber::LocalOut, -100),
            Hook::PostRouting => ("nat", InetHookNumber::PostRouting, 100),
        };
        attributes.push(ChainAttribute::Type(kind.to_owned()));
        attributes.push(ChainAttribute::Hook(vec![
            HookAttribute::Number(HookNumber::Inet(number)),
            HookAttribute::Priority(priority.cast_unsigned()),
        ]));
    }
    NfTablesMessage::NewChain(ChainMessage { attributes })
}

fn new_rule(table: &Table, rule: &Rule) -> NfTablesMessage {
    let expressions = expression::of_rule(table.family, rule);
    let expressions = expressions.into_iter().map(ListAttribute::from).collect();
    NfTablesMessage::NewRule(RuleMessage {
        attributes: vec![
            RuleAttribute::Table(table.name.clone()),
            RuleAttribute::Chain(rule.chain.to_owned()),
            RuleAttribute::Expressions(expressions),
        ],
    })
}
