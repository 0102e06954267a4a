//! Transactions of nftables over a netlink socket.

use std::io;

use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily, NetfilterSubsystem,
};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::Family;

/// Messages of one transaction; more than fit a send buffer go in several.
const BATCH: usize = 128;

/// Room for the kernel's answer to a batch: an acknowledgement and some errors.
const ANSWER: usize = 64 * 1024;

pub(super) struct NftSocket(Socket);

impl NftSocket {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel answers within the sending call, or never.
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Makes the changes in their order. Each batch is made as a whole or not at all.
    pub(super) fn run(&mut self, family: Family, messages: Vec<NfTablesMessage>) -> io::Result<()> {
        for batch in messages.chunks(BATCH) {
            self.0.send(&emit(family, batch), 0)?;
            self.receive()?;
        }
        Ok(())
    }

    /// Takes the acknowledgement of a batch's last message, or the first error of any.
    fn receive(&mut self) -> io::Result<()> {
        loop {
            let mut buffer = Vec::with_capacity(ANSWER);
            self.0.recv(&mut buffer, 0)?;
            if let Some(result) = answer(&buffer)? {
                return result;
            }
        }
    }
}

/// What a datagram of the kernel's says about the batch.
fn answer(mut datagram: &[u8]) -> io::Result<Option<io::Result<()>>> {
    while !datagram.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(datagram)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if let NetlinkPayload::Error(error) = &message.payload {
            let result = match error.code {
                None => Ok(()),
                Some(_) => Err(error.to_io()),
            };
            return Ok(Some(result));
        }
        let length = (message.header.length as usize).next_multiple_of(4);
        datagram = datagram.get(length.max(1)..).unwrap_or_default();
    }
    Ok(None)
}

/// The bytes of a transaction.
fn emit(family: Family, messages: &[NfTablesMessage]) -> Vec<u8> {
    let family = match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    };
    let mut bytes = Vec::new();
    append(&mut bytes, control(ControlMessage::BatchBegin), 0);
    for (index, message) in messages.iter().enumerate() {
        let header = NetfilterHeader::new(family, 0, 0);
        let last = index + 1 == messages.len();
        let flags = match message {
            NfTablesMessage::DeleteTable(_) => 0,
            _ => NLM_F_CREATE | NLM_F_APPEND,
        };
        let message = NetfilterMessage::new(header, message.clone());
        append(
            &mut bytes,
            message,
            flags | if last { NLM_F_ACK } else { 0 },
        );
    }
    append(&mut bytes, control(ControlMessage::BatchEnd), 0);
    bytes
}

/// The begin or the end of a transaction of nftables.
fn control(message: ControlMessage) -> NetfilterMessage {
    let subsystem = u8::from(NetfilterSubsystem::NfTables).into();
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, subsystem);
    NetfilterMessage::new(header, message)
}

fn append(bytes: &mut Vec<u8>, message: NetfilterMessage, flags: u16) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}
