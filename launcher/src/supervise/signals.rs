//! Signals as input of the loop instead of interruptions.
//!
//! They are blocked from before the first change to the host until the end, so that none can cut
//! a run short between taking something and arranging for its return. Before that they end it at once, whatever it
//! waits for. The vm process inherits the mask: a Ctrl-C on its terminal is
//! for the launcher to handle.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal as Number};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};

use crate::exit::Exit;

/// What a signal means to the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// A child changed its state.
    Child,
    /// Somebody wants the end of the run; the signal's name.
    Stop(&'static str),
}

/// Signals that want the end of the run, all alike (as in KubeVirt).
const STOP: [Number; 4] = [
    Number::SIGTERM,
    Number::SIGINT,
    Number::SIGQUIT,
    Number::SIGHUP,
];

/// Signals of this process, read in order.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Until they are blocked, signals end this process with [`Exit::Stopped`].
    pub fn end_early() -> io::Result<()> {
        vmm::early::exit_on(wanted().map(|signal| signal as i32), Exit::Stopped as i32)
    }

    /// Blocks the signals and opens a descriptor to read them from.
    pub fn block() -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Number::SIGCHLD);
        wanted().for_each(|signal| set.add(signal));
        set.thread_block()?;
        Ok(Self {
            fd: SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
        })
    }

    /// Readable while one of the signals waits that want the end, which are blocked and stay there for who reads them.
    pub(crate) fn watch() -> io::Result<Self> {
        let mut set = SigSet::empty();
        wanted().for_each(|signal| set.add(signal));
        Ok(Self {
            fd: SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
        })
    }

    /// The next signal that is pending.
    pub(crate) fn next(&self) -> Option<Signal> {
        let number = self.fd.read_signal().ok()??.ssi_signo;
        let stop = STOP.iter().find(|signal| **signal as u32 == number);
        Some(stop.map_or(Signal::Child, |signal| Signal::Stop(signal.as_str())))
    }

    /// Whether one of those that are pending wants the end; all are taken.
    pub(crate) fn want_end(&self) -> bool {
        let mut is_wanted = false;
        while let Some(signal) = self.next() {
            is_wanted |= matches!(signal, Signal::Stop(_));
        }
        is_wanted
    }

    /// Waits until somebody wants the end.
    pub(crate) fn wait_for_end(&self) -> io::Result<()> {
        while !self.want_end() {
            poll(&mut [PollFd::new(self, PollFlags::IN)], None)?;
        }
        Ok(())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Those that are not ignored: a blocked signal is queued even if it is, as under `nohup`.
fn wanted() -> impl Iterator<Item = Number> {
    let kept = |signal: &Number| {
        *signal != Number::SIGHUP || !vmm::early::is_ignored(Number::SIGHUP as i32)
    };
    STOP.into_iter().filter(kept)
}
