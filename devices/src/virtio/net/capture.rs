//! A copy of what a NIC receives and sends, for people (`run --pcap`).
//!
//! The two files come open with the NIC and are used in turn: when one is full, the other is emptied and goes on.
//! Each block is written as a whole by the worker whose packet it is, so that a file is one at any moment.

pub(super) mod pcapng;

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use self::pcapng::Packet;
use crate::pod_net::answers::Protocol;
use crate::pod_net::guard::Offence;
use crate::virtio::spec::BuildDeviceError;

/// Bytes that each of the two files may have.
const MAX_FILE: u64 = 64 << 20;

/// Descriptors of a capture.
pub(super) const FILES: usize = 2;

/// Which way a packet goes, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Received,
    Sent,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It went on.
    Passed,
    /// The NIC answered it itself.
    Answered(Protocol),
    /// It is such an answer, or an advertisement.
    Made(Protocol),
    /// It was for the NIC, which has nothing to say.
    Ignored(Protocol),
    /// The guard kept it in.
    Kept(Offence),
    /// It is lost.
    Lost(Cause),
}

/// Why a packet is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    LinkDown,
    SmallBuffers,
    BusyBackend,
    RefusedByBackend,
}

/// The comment beside the packet; nothing beside one that went on.
impl fmt::Display for Fate {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => Ok(()),
            Self::Answered(protocol) => write!(to, "answered by podvisor: {protocol}"),
            Self::Made(protocol) => write!(to, "made by podvisor: {protocol}"),
            Self::Ignored(protocol) => write!(to, "not answered by podvisor: {protocol}"),
            Self::Kept(Offence::Impersonation) => {
                to.write_str("dropped: only routers and servers send such packets")
            }
            Self::Kept(Offence::Spoof) => {
                to.write_str("dropped: the sender's address is not the NIC's")
            }
            Self::Lost(cause) => {
                let cause = match cause {
                    Cause::LinkDown => "the link is down",
                    Cause::SmallBuffers => "the guest's buffers are too small",
                    Cause::BusyBackend => "the network's side takes no more",
                    Cause::RefusedByBackend => "the network's side refused it",
                };
                write!(to, "dropped: {cause}")
            }
        }
    }
}

/// Where copies of packets go.
#[derive(Debug)]
pub struct Capture(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Name of the NIC.
    name: String,
    files: [File; FILES],
    /// The file that is written to, and how long it is.
    current: usize,
    written: u64,
    limit: u64,
    /// The next block, which is made here.
    block: Vec<u8>,
    failed: bool,
}

impl Capture {
    /// Takes the files from the front of a NIC's descriptors, of which there are to be `others` more. They are empty, and
    /// writes append.
    pub(super) fn take(
        name: &str,
        descriptors: &mut Vec<OwnedFd>,
        others: usize,
    ) -> Result<Self, BuildDeviceError> {
        let found = descriptors.len();
        let rest = descriptors.split_off(found.min(FILES));
        let files = std::mem::replace(descriptors, rest).into_iter();
        let files: Vec<_> = files.map(File::from).collect();
        let files = <[File; FILES]>::try_from(files);
        let files = files.map_err(|_| BuildDeviceError::Descriptors {
            name: name.to_owned(),
            found,
            wanted: FILES + others,
        })?;
        Self::new(name, files, MAX_FILE).map_err(BuildDeviceError::failed)
    }

    /// Begins the first file.
    fn new(name: &str, files: [File; FILES], limit: u64) -> io::Result<Self> {
        let mut state = State {
            name: name.to_owned(),
            files,
            current: 0,
            written: 0,
            limit,
            block: Vec::with_capacity(pcapng::MAX_BLOCK),
            failed: false,
        };
        state.begin()?;
        Ok(Self(Mutex::new(state)))
    }

    /// Writes down a packet of `len` bytes, which `copy` fills in.
    pub(super) fn record(
        &self,
        direction: Direction,
        fate: Fate,
        len: usize,
        copy: impl FnOnce(&mut [u8]),
    ) {
        let mut state = self.lock();
        if state.failed {
            return;
        }
        let packet = Packet {
            time: SystemTime::now(),
            direction,
            fate,
        };
        pcapng::packet(&mut state.block, &packet, len, copy);
        if let Err(error) = state.append() {
            state.failed = true;
            let name = &state.name;
            tracing::error!("packets of NIC {name} are not captured any more: {error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A block that a panic left half made is made anew.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Writes the block that was made, to the other file if this one would be too long.
    fn append(&mut self) -> io::Result<()> {
        if self.written + self.block.len() as u64 > self.limit {
            self.current = (self.current + 1) % FILES;
            self.files[self.current].set_len(0)?;
            self.written = 0;
            let packet = std::mem::replace(&mut self.block, Vec::with_capacity(pcapng::MAX_BLOCK));
            self.begin()?;
            self.block = packet;
        }
        self.write()
    }

    /// What a file begins with.
    fn begin(&mut self) -> io::Result<()> {
        pcapng::beginning(&mut self.block, &self.name);
        self.write()
    }

    /// All of the block or nothing, so that readers find no part of one.
    fn write(&mut self) -> io::Result<()> {
        let file = &mut self.files[self.current];
        if let Err(error) = file.write_all(&self.block) {
            file.set_len(self.written)?;
            return Err(error);
        }
        self.written += self.block.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const LIMIT: u64 = 1000;

    fn file(path: &Path) -> File {
        let mut options = File::options();
        let options = options.append(true).create(true);
        options.open(path).expect("a file")
    }

    #[test]
    fn files_are_used_in_turn_and_stay_bounded() {
        let directory = tempfile::tempdir().expect("a directory");
        let paths = ["a", "b"].map(|name| directory.path().join(name));
        let files = paths.each_ref().map(|path| file(path));
        let capture = Capture::new("default", files, LIMIT).expect("room");
        for number in 0..50_u8 {
            let copy = |to: &mut [u8]| to.fill(number);
            let fate = Fate::Kept(Offence::Spoof);
            capture.record(Direction::Sent, fate, 61, copy);
        }
        let mut seen = Vec::new();
        for path in &paths {
            let bytes = fs::read(path).expect("a file");
            assert!(bytes.len() as u64 <= LIMIT, "{}", bytes.len());
            for (direction, frame, comment) in pcapng::read(&bytes) {
                assert_eq!(frame, vec![frame[0]; 61]);
                assert_eq!(direction, Direction::Sent);
                assert!(comment.starts_with("dropped: the sender"), "{comment}");
                seen.push(frame[0]);
            }
        }
        seen.sort_unstable();
        let newest: Vec<_> = (50 - seen.len() as u8..50).collect();
        assert!(seen.len() > 6, "{seen:?}");
        assert_eq!(seen, newest);
    }

    #[test]
    fn a_full_disk_ends_it_between_two_packets() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a");
        let full = || file(Path::new("/dev/full"));
        Capture::new("default", [full(), full()], LIMIT).expect_err("no room");
        let capture = Capture::new("default", [file(&path), full()], LIMIT).expect("room");
        for _ in 0..50 {
            capture.record(Direction::Received, Fate::Passed, 60, |_| {});
        }
        let state = capture.lock();
        assert!(state.failed);
        let bytes = fs::read(&path).expect("a file");
        assert!(!pcapng::read(&bytes).is_empty());
    }
}
