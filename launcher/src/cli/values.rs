//! Values of the command line: how they are read, and shown where they cannot be.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};

use crate::network::Forward;
use crate::vmi::HostAddress;
use crate::vmi::{MAX_KERNEL_ARGS, Protocol, Quantity, is_kernel_args};

/// Characters of a value shown in an error.
const MAX_SHOWN: usize = 60;

/// The error with a value no longer than it takes to recognise it.
pub fn shortened(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
        && let Some((end, _)) = value.char_indices().nth(MAX_SHOWN)
    {
        let short = ContextValue::String(format!("{}…", &value[..end]));
        error.insert(ContextKind::InvalidValue, short);
    }
    error
}

pub(super) fn volume(text: &str) -> Result<(String, PathBuf), &'static str> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), path.into()))
        }
        _ => Err("expected NAME=PATH"),
    }
}

/// Name of a VMI's device, and the host's for it.
pub(super) fn host_device(text: &str) -> Result<(String, HostAddress), String> {
    let (name, address) = text.split_once('=').ok_or("expected NAME=ADDRESS")?;
    let address: Result<HostAddress, _> = address.parse();
    let address = address.map_err(|error| format!("the address is {error}"))?;
    Ok((name.to_owned(), address))
}

/// As a VMI says sizes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let quantity: Result<Quantity, _> = text.parse();
    quantity
        .map(Quantity::value)
        .map_err(|error| format!("expected {error}"))
}

/// Part of a port's name and its socket.
pub(super) fn named_port(text: &str) -> Result<(String, PathBuf), &'static str> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() => Ok((name.to_owned(), unix_path(path)?)),
        _ => Err("expected NAME=unix:PATH"),
    }
}

/// The last colon parts file and path.
pub(super) fn injection(text: &str) -> Result<(PathBuf, String), &'static str> {
    match text.rsplit_once(':') {
        Some((file, path)) if !file.is_empty() && path.starts_with('/') && !path.ends_with('/') => {
            Ok((file.into(), path.to_owned()))
        }
        _ => Err("expected FILE:PATH, with an absolute path of a file"),
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, &'static str> {
    let expected = "expected a number of seconds, or one with s, m or h after it";
    let (digits, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, "s"),
    };
    let number: u64 = digits.parse().map_err(|_| expected)?;
    let unit = match unit {
        "h" => 3600,
        "m" => 60,
        _ => 1,
    };
    match number.checked_mul(unit) {
        // A year is more than enough, and no time of the clock's end.
        Some(seconds @ 1..=31_536_000) => Ok(Duration::from_secs(seconds)),
        _ => Err(expected),
    }
}

pub(super) fn forward(text: &str) -> Result<Forward, &'static str> {
    let (ports, protocol) = match text.strip_suffix("/udp") {
        Some(ports) => (ports, Protocol::Udp),
        None => (text.strip_suffix("/tcp").unwrap_or(text), Protocol::Tcp),
    };
    let port = |text: &str| text.parse().ok().filter(|port| *port != 0);
    let (from, to) = ports.split_once(':').ok_or("expected HOST:GUEST")?;
    match (port(from), port(to)) {
        (Some(from), Some(to)) => Ok(Forward { protocol, from, to }),
        _ => Err("expected two numbers of ports"),
    }
}

/// A user or group that is not root; the largest number means none.
pub(super) fn id() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..i64::from(u32::MAX))
}

pub(super) fn unix_path(text: &str) -> Result<PathBuf, &'static str> {
    let path = text.strip_prefix("unix:").filter(|path| !path.is_empty());
    path.map(PathBuf::from).ok_or("expected unix:PATH")
}

pub(super) fn cmdline(text: &str) -> Result<String, String> {
    if !is_kernel_args(text) {
        return Err(format!(
            "expected at most {MAX_KERNEL_ARGS} bytes without control characters"
        ));
    }
    Ok(text.to_owned())
}
