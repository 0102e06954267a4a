//! The command line: words, some of them `key=value`.

use crate::phys;

const CAPACITY: usize = 2048;

/// A copy of the command line.
pub struct Cmdline {
    bytes: [u8; CAPACITY],
    len: usize,
}

impl Cmdline {
    /// Copies the zero-terminated string at `addr`; 0 means none.
    pub fn read(addr: u64) -> Self {
        let mut line = Self {
            bytes: [0; CAPACITY],
            len: 0,
        };
        while addr != 0 && line.len < CAPACITY {
            let byte = phys::r8(addr + line.len as u64);
            if byte == 0 {
                break;
            }
            line.bytes[line.len] = byte;
            line.len += 1;
        }
        line
    }

    /// The words.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        core::str::from_utf8(&self.bytes[..self.len])
            .unwrap_or("")
            .split_ascii_whitespace()
    }

    /// The value of the last `key=value`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.words()
            .filter_map(|word| word.split_once('='))
            .filter(|(k, _)| *k == key)
            .map(|(_, v)| v)
            .last()
    }

    /// A number, decimal or `0x…`, with an optional suffix k, M or G (powers of 1024).
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(parse_number)
    }

    /// True for `key`, `key=1`, `key=on`.
    pub fn flag(&self, key: &str) -> bool {
        self.words().any(|word| word == key) || matches!(self.get(key), Some("1" | "on"))
    }
}

/// Parses what [`Cmdline::number`] accepts.
pub fn parse_number(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
