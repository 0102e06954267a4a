//! What KubeVirt's node agent and the kernel say of interfaces of the pod, for a process that has few paths.

use std::fs::File;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::network::{self, HandedOn};
use crate::resources::{Kind, open_below, settle};

/// Longest record, bytes; one with hundreds of routes has less.
const MAX_RECORD: usize = 64 << 10;

/// Most bytes that are read of the list of addresses: some hundred of them.
const MAX_LIST: usize = 16 << 10;

/// Bytes read at a time.
const CHUNK: usize = 4096;

/// The kernel's list of IPv6 addresses in this network namespace, a new one each time that it is read from its beginning.
const ADDRESSES: &str = "/proc/thread-self/net/if_inet6";

/// Scope of an address that others reach, and a flag of one that does not last (`linux/if_addr.h`).
const GLOBAL: u8 = 0;
const TEMPORARY: u8 = 1;

/// What was there when it could be opened.
#[derive(Debug, Default)]
pub(super) struct Records {
    directory: Option<OwnedFd>,
    addresses: Option<File>,
}

impl Records {
    /// Those of the node agent's directory, and of the network namespace of now.
    pub(super) fn open(directory: &Path) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self {
            directory: rustix::fs::openat(CWD, directory, flags, Mode::empty()).ok(),
            addresses: File::open(ADDRESSES).ok(),
        }
    }

    /// The record of an interface, if there is one. No link is followed, and nothing waited for.
    pub(super) fn of(&self, interface: &str) -> io::Result<Option<HandedOn>> {
        let Some(directory) = &self.directory else {
            return Ok(None);
        };
        let name = network::record_name(interface);
        let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK;
        let links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = match open_below(directory, Path::new(&name), flags, links) {
            Err(Errno::NOENT) => return Ok(None),
            opened => opened?,
        };
        let file = settle(opened, Kind::File).map_err(io::Error::other)?;
        let text = read(&File::from(file), MAX_RECORD)?;
        network::handed_on(&text).map(Some)
    }

    /// The first lasting global IPv6 address of an interface and the length of its prefix.
    pub(super) fn address6(&self, interface: &str) -> Option<(Ipv6Addr, u8)> {
        let list = read(self.addresses.as_ref()?, MAX_LIST).ok()?;
        find(str::from_utf8(&list).ok()?, interface)
    }
}

/// All of a file from its beginning, wherever others are in it.
fn read(file: &File, most: usize) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let end = all.len();
        all.resize(end + CHUNK, 0);
        let len = file.read_at(&mut all[end..], end as u64)?;
        all.truncate(end + len);
        if len == 0 {
            return Ok(all);
        }
        if all.len() > most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
}

/// Address, number of the interface, length of the prefix, scope, flags, all in hexadecimal digits, and the interface.
fn find(list: &str, interface: &str) -> Option<(Ipv6Addr, u8)> {
    list.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let address = u128::from_str_radix(words.next()?, 16).ok()?;
        let mut byte = || u8::from_str_radix(words.next()?, 16).ok();
        let (_index, prefix_len, scope, flags) = (byte(), byte()?, byte()?, byte()?);
        let is_it = words.next() == Some(interface) && scope == GLOBAL && flags & TEMPORARY == 0;
        is_it.then_some((Ipv6Addr::from_bits(address), prefix_len))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn addresses_are_found_in_the_kernels_list() {
        let list = "00000000000000000000000000000001 01 80 10 80       lo\n\
            fe80000000000000005056fffe000001 103 40 20 80  pod16477\n\
            20010db8000000000000000000000007 103 40 00 01  pod16477\n\
            20010db8000000000000000000000005 103 40 00 c0  pod16477\n\
            20010db8000000000000000000000006 103 40 00 80  pod16477\n";
        let found = find(list, "pod16477").expect("one that lasts");
        assert_eq!((found.0.to_string().as_str(), found.1), ("2001:db8::5", 64));
        assert_eq!(find(list, "lo"), None);
        assert_eq!(find("nonsense\n20 x\n", "x"), None);
        // The list is there, and is read more than once.
        let records = Records::open(Path::new("/nonexistent"));
        assert_eq!(records.address6("no-such-one"), None);
        assert_eq!(records.address6("lo"), None);
        assert!(records.of("lo").expect("no record").is_none());
    }

    #[test]
    fn records_are_read_where_they_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path();
        let record = r#"{"IP": {"IP": "10.9.9.5", "Mask": "////AA=="}, "MAC": "AgAAAAAB",
            "Gateway": "10.9.9.1", "Routes": null, "IPAMDisabled": false}"#;
        fs::write(place.join("vif-cache-blue.json"), record).expect("writable");
        fs::write(place.join("vif-cache-wrong.json"), "{").expect("writable");
        std::os::unix::fs::symlink("vif-cache-blue.json", place.join("vif-cache-red.json"))
            .expect("a link");
        fs::write(
            place.join("vif-cache-long.json"),
            " ".repeat(MAX_RECORD + 1),
        )
        .expect("writable");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mkfifoat(CWD, place.join("vif-cache-pipe.json"), mode).expect("a pipe");
        let records = Records::open(place);
        let blue = records.of("blue").expect("read").expect("there");
        assert_eq!(blue.mac, Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(blue.address, Some(([10, 9, 9, 5].into(), 24)));
        assert_eq!(blue.routes.len(), 1, "{blue:?}");
        for wrong in ["wrong", "red", "long", "pipe"] {
            records.of(wrong).expect_err(wrong);
        }
    }
}
