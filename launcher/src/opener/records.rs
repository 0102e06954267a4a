//! What KubeVirt's node agent and the kernel say of interfaces of the pod, for a process that has few paths.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::protocol::{MAX_SECRETS, SecretFiles};
use crate::network::{self, HandedOn, VIF_CACHE_DIR};
use crate::plan::access_secret;
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

/// A Secret cannot be read.
#[derive(Debug, Error)]
#[error("Cannot read the Secret {name:?}")]
pub(super) struct SecretError {
    name: String,
    #[source]
    source: io::Error,
}

/// Whether a Secret can have this name: it becomes part of a path.
pub(crate) fn is_secret(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0'])
}

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

    /// What is in Secrets with access credentials: links lead nowhere outside of each.
    pub(super) fn secrets(
        &self,
        names: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, SecretFiles>, SecretError> {
        let mut left = MAX_SECRETS as usize;
        let read = |name: &String| {
            let files = self.secret(name, &mut left);
            let files = files.map_err(|source| SecretError {
                name: name.clone(),
                source,
            })?;
            Ok((name.clone(), files))
        };
        names.iter().map(read).collect()
    }

    fn secret(&self, name: &str, left: &mut usize) -> io::Result<SecretFiles> {
        let directory = self.directory.as_ref().filter(|_| is_secret(name));
        let directory = directory.ok_or(io::ErrorKind::NotFound)?;
        let place = access_secret(name);
        let below = place
            .strip_prefix(VIF_CACHE_DIR)
            .map_err(io::Error::other)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let directory = open_below(directory, below, flags, links)?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&directory, &mut buffer);
        let mut files = SecretFiles::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            // The rest is kubelet's.
            let name = entry.file_name().to_str().unwrap_or_default();
            if name.is_empty() || name == "." || name.starts_with("..") {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK;
            let links = ResolveFlags::NO_MAGICLINKS;
            let file = open_below(&directory, Path::new(name), flags, links)?;
            let file = settle(file, Kind::File).map_err(io::Error::other)?;
            let text = String::from_utf8(read(&File::from(file), *left)?);
            let text = text.map_err(|_| io::ErrorKind::InvalidData)?;
            *left = left
                .checked_sub(name.len() + text.len())
                .ok_or(io::ErrorKind::FileTooLarge)?;
            files.insert(name.to_owned(), text);
        }
        Ok(files)
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

    /// As the kubelet mounts it, and as somebody else would.
    #[test]
    fn secrets_are_read_where_they_are() {
        use std::os::unix::fs::symlink;

        let root = tempfile::tempdir().expect("a directory");
        let place = |name: &str| {
            root.path()
                .join("secret")
                .join(format!("{name}-access-cred"))
        };
        let data = place("keys").join("..2026");
        fs::create_dir_all(&data).expect("writable");
        fs::write(data.join("one"), "ssh-ed25519 one").expect("writable");
        symlink("..2026", place("keys").join("..data")).expect("a link");
        symlink("..data/one", place("keys").join("one")).expect("a link");
        fs::write(root.path().join("other"), "secret").expect("writable");
        fs::create_dir_all(place("out")).expect("writable");
        symlink("../../other", place("out").join("one")).expect("a link");
        fs::create_dir_all(place("long")).expect("writable");
        let long = " ".repeat(MAX_SECRETS as usize);
        fs::write(place("long").join("one"), long).expect("writable");
        symlink("keys-access-cred", place("link")).expect("a link");
        let records = Records::open(root.path());
        let read = |name: &str| records.secrets(&BTreeSet::from([name.to_owned()]));
        let found = read("keys").expect("read");
        let files = SecretFiles::from([("one".to_owned(), "ssh-ed25519 one".to_owned())]);
        assert_eq!(found, BTreeMap::from([("keys".to_owned(), files)]));
        for wrong in ["out", "long", "link", "missing", "../other", ""] {
            let error = read(wrong).expect_err("refused").to_string();
            assert!(error.contains(&format!("{wrong:?}")), "{error}");
        }
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
