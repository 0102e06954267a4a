//! What of the format pcapng a capture needs (draft-ietf-opsawg-pcapng): one section with one interface, and packets
//! with a direction and a comment. All numbers are little-endian, and all parts are padded to 32 bits.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Direction, Fate};
use crate::virtio::net::features::MAX_PACKET;

/// Longest block, bytes: the longest packet, and what is around it.
pub(super) const MAX_BLOCK: usize = MAX_PACKET + 256;

/// Types of blocks (4.1 to 4.3).
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;

/// Says in which order the bytes of numbers are.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Version 1.0: major, minor.
const VERSION: [u16; 2] = [1, 0];
/// The section ends with the file.
const LENGTH_UNKNOWN: u64 = u64::MAX;
/// `LINKTYPE_ETHERNET`, and 16 bits of nothing.
const ETHERNET: u32 = 1;
/// Packets are not cut.
const NO_SNAPLEN: u32 = 0;

/// Options (3.5, 4.2, 4.3): codes.
const END: u16 = 0;
const COMMENT: u16 = 1;
const USER_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const TIME_RESOLUTION: u16 = 9;
const FLAGS: u16 = 2;

/// Times are in nanoseconds: the power of ten.
const NANOSECONDS: u8 = 9;

/// Values of [`FLAGS`], as the interface sees it.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// What is said of a packet.
pub(super) struct Packet {
    pub(super) time: SystemTime,
    pub(super) direction: Direction,
    pub(super) fate: Fate,
}

/// Makes what a file begins with, for the interface called `name`.
pub(super) fn beginning(to: &mut Vec<u8>, name: &str) {
    to.clear();
    block(to, SECTION, |to| {
        word(to, BYTE_ORDER);
        for number in VERSION {
            to.extend(number.to_le_bytes());
        }
        to.extend(LENGTH_UNKNOWN.to_le_bytes());
        let program = concat!("podvisor ", env!("CARGO_PKG_VERSION"));
        option(to, USER_APPLICATION, |to| to.extend(program.as_bytes()));
        option(to, END, |_| {});
    });
    block(to, INTERFACE, |to| {
        word(to, ETHERNET);
        word(to, NO_SNAPLEN);
        option(to, INTERFACE_NAME, |to| to.extend(name.as_bytes()));
        option(to, TIME_RESOLUTION, |to| to.push(NANOSECONDS));
        option(to, END, |_| {});
    });
}

/// Makes the block of a packet of `len` bytes, which `copy` fills in.
pub(super) fn packet(to: &mut Vec<u8>, packet: &Packet, len: usize, copy: impl FnOnce(&mut [u8])) {
    to.clear();
    let since = packet.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Enough for five centuries.
    let time = since.as_nanos() as u64;
    block(to, PACKET, |to| {
        // The first and only interface.
        word(to, 0);
        word(to, (time >> 32) as u32);
        word(to, time as u32);
        // What is here of it, and what it was.
        word(to, len as u32);
        word(to, len as u32);
        let start = to.len();
        to.resize(start + len, 0);
        copy(&mut to[start..]);
        pad(to);
        if packet.fate != Fate::Passed {
            // Writing to a vector does not fail.
            option(to, COMMENT, |to| drop(write!(to, "{}", packet.fate)));
        }
        let flags = match packet.direction {
            Direction::Received => INBOUND,
            Direction::Sent => OUTBOUND,
        };
        option(to, FLAGS, |to| word(to, flags));
        option(to, END, |_| {});
    });
}

/// A block: its type, and its length before and behind what `fill` puts into it.
fn block(to: &mut Vec<u8>, kind: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    word(to, kind);
    let length = to.len();
    word(to, 0);
    fill(to);
    let len = ((to.len() - start + size_of::<u32>()) as u32).to_le_bytes();
    to[length..length + len.len()].copy_from_slice(&len);
    to.extend(len);
}

/// An option: its code and length, then what `fill` puts into it.
fn option(to: &mut Vec<u8>, code: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    to.extend(code.to_le_bytes());
    let length = to.len();
    to.extend([0; size_of::<u16>()]);
    let start = to.len();
    fill(to);
    let len = ((to.len() - start) as u16).to_le_bytes();
    to[length..start].copy_from_slice(&len);
    pad(to);
}

fn word(to: &mut Vec<u8>, word: u32) {
    to.extend(word.to_le_bytes());
}

/// Blocks are whole words, so a place in the buffer is one in the block.
fn pad(to: &mut Vec<u8>) {
    to.resize(to.len().next_multiple_of(size_of::<u32>()), 0);
}

/// The packets of a file: which way each goes, its bytes and its comment.
#[cfg(test)]
pub(in crate::virtio::net) fn read(file: &[u8]) -> Vec<(Direction, Vec<u8>, String)> {
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("a word"));
    let (mut packets, mut at, mut kinds) = (Vec::new(), 0, Vec::new());
    while at < file.len() {
        let end = at + word(at + 4) as usize;
        assert_eq!(word(end - 4) as usize, end - at);
        kinds.push(word(at));
        if word(at) == PACKET {
            let len = word(at + 20) as usize;
            assert_eq!(word(at + 24) as usize, len);
            let frame = file[at + 28..at + 28 + len].to_vec();
            let mut option = at + 28 + len.next_multiple_of(4);
            let (mut comment, mut direction) = (String::new(), None);
            while word(option) != u32::from(END) {
                let (code, len) = (word(option) as u16, (word(option) >> 16) as usize);
                let value = &file[option + 4..option + 4 + len];
                match code {
                    COMMENT => comment = String::from_utf8_lossy(value).into_owned(),
                    _ if value == INBOUND.to_le_bytes() => direction = Some(Direction::Received),
                    _ => direction = Some(Direction::Sent),
                }
                option += 4 + len.next_multiple_of(4);
            }
            assert_eq!(option, end - 8);
            packets.push((direction.expect("flags"), frame, comment));
        }
        at = end;
    }
    assert_eq!(kinds[..2], [SECTION, INTERFACE]);
    assert!(kinds[2..].iter().all(|kind| *kind == PACKET));
    packets
}
