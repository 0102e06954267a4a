//! What becomes of what the script prints.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use devices::at_once;
use rustix::io::Errno;

/// Bytes of output that an answer in JSON has; what comes later is not in it.
const MAX_OUTPUT: usize = 16 << 20;

/// Where it goes.
pub(super) enum Sink {
    /// Into the answer.
    Keep(Vec<u8>),
    /// To standard output, as fast as that takes it; what has not been taken yet.
    PassOn(Vec<u8>),
}

impl Sink {
    pub(super) fn keep() -> Self {
        Self::Keep(Vec::new())
    }

    pub(super) fn pass_on() -> Self {
        Self::PassOn(Vec::new())
    }

    /// Takes what is printed; of a sink that waits, more is to be asked for only when it no longer does.
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        match self {
            Self::Keep(said) => {
                let room = MAX_OUTPUT.saturating_sub(said.len());
                said.extend(bytes.iter().take(room));
            }
            Self::PassOn(pending) => {
                pending.extend(bytes);
                self.flush();
            }
        }
    }

    /// What is waited for: that standard output takes more.
    pub(super) fn waits_for(&self) -> Option<BorrowedFd<'static>> {
        let waits = matches!(self, Self::PassOn(pending) if !pending.is_empty());
        waits.then(rustix::stdio::stdout)
    }

    /// Passes on what standard output takes now.
    pub(super) fn flush(&mut self) {
        let Self::PassOn(pending) = self else {
            return;
        };
        let output = io::stdout();
        let is_file = at_once::is_file(output.as_fd());
        while !pending.is_empty() {
            let written = match is_file {
                true => rustix::io::write(&output, pending),
                false => at_once::write(output.as_fd(), pending),
            };
            match written {
                Ok(count) if count > 0 => drop(pending.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // A reader that has gone wanted no more.
                Ok(_) | Err(_) => pending.clear(),
            }
        }
    }

    /// What was kept for the answer.
    pub(super) fn kept(&self) -> Option<&[u8]> {
        match self {
            Self::Keep(said) => Some(said),
            Self::PassOn(_) => None,
        }
    }
}
