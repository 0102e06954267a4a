//! The process that reads boot disks: it has their descriptors and nothing else.
//!
//! ```text
//!   launcher                                reader
//!      │ Order::Disks {disks}, descriptors     │
//!      ├──────────────────────────────────────▶│ keeps them
//!      │ Order::Boot {entry}                   │
//!      ├──────────────────────────────────────▶│ reads
//!      │ Answer::Booted {…}, kernel, initrd    │
//!      │◀──────────────────────────────────────┤ sealed files in memory
//! ```
//!
//! It is forked when the machine is known to boot from a disk, and stays, since a guest that reboots may have another
//! kernel by then. A disk that was made to take it over gains what is on that disk. Losing the socket ends it, and so do
//! the death of the process that it belongs to, where that is the one that forked it, and an order that takes longer than
//! [`PATIENCE`].

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};
use seccomp::jail::{self, User};
use seccomp::{Others, Role};
use thiserror::Error as ThisError;
use vmm::control::{self, ControlError};
use vmm::footprint;

use super::protocol::{self, Answer, Order};
use crate::supervise;

/// Time that an order may take, for all its disks: far more than a network file system needs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Memory that it may map: code, and what a hostile disk can make a reader of file systems allocate.
const MAX_MEMORY: u64 = 768 << 20;

/// A boot disk cannot be read.
#[derive(Debug, ThisError)]
pub enum ReaderError {
    /// No socket pair.
    #[error("Cannot make a socket pair for the process that reads boot disks")]
    Socket(#[source] io::Error),
    /// No process.
    #[error("Cannot fork the process that reads boot disks")]
    Fork(#[source] io::Error),
    /// It does not listen or answer.
    #[error("The process that reads boot disks does not answer")]
    Talk(#[source] ControlError),
    /// It takes too long.
    #[error("The process that reads boot disks did not finish in {} s", PATIENCE.as_secs())]
    TooLate,
    /// What it answers makes no sense.
    #[error("The process that reads boot disks answered with {0}")]
    Nonsense(&'static str),
}

/// A running reader.
#[derive(Debug)]
pub struct Reader(OwnedFd);

impl Reader {
    /// Starts one that will be `user`, or what this process is, which has one thread. One that is `lent` is for another
    /// process, which gets its socket.
    pub fn spawn(user: Option<User>, lent: bool, json_log: bool) -> Result<Self, ReaderError> {
        let (ours, theirs) = control::pair().map_err(ReaderError::Socket)?;
        let parent = (!lent).then(rustix::process::getpid);
        jail::fork(theirs, || enter(user, parent, json_log)).map_err(ReaderError::Fork)?;
        Ok(Self(ours))
    }

    /// Gives it an order. Never waits.
    pub fn order(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> Result<(), ReaderError> {
        control::try_send(self.0.as_fd(), order, descriptors).map_err(ReaderError::Talk)
    }

    /// The next answer; the caller has seen that there is one, or the end.
    pub fn receive(&self) -> Result<(Answer, Vec<File>), ReaderError> {
        let (answer, files) = control::receive(self.0.as_fd()).map_err(ReaderError::Talk)?;
        let files: Vec<_> = files.into_iter().map(File::from).collect();
        protocol::check(&answer, &files)?;
        Ok((answer, files))
    }

    /// Waits for the next answer.
    pub fn wait(&self) -> Result<(Answer, Vec<File>), ReaderError> {
        // It ends itself by then.
        let time = Timespec {
            tv_sec: PATIENCE.as_secs().cast_signed() + 1,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        match rustix::io::retry_on_intr(|| poll(&mut fds, Some(&time))) {
            Ok(0) => Err(ReaderError::TooLate),
            Ok(_) => self.receive(),
            Err(errno) => Err(ReaderError::Talk(ControlError::Socket(errno.into()))),
        }
    }
}

impl From<OwnedFd> for Reader {
    /// The socket of one that another process has started.
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl From<Reader> for OwnedFd {
    fn from(reader: Reader) -> Self {
        reader.0
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The main function: whether it ended as it should.
fn enter(user: Option<User>, parent: Option<Pid>, json_log: bool) -> bool {
    let _ = rustix::thread::set_name(c"podvisor-boot");
    vmm::early::leave_to_launcher();
    let run = || -> Result<(), Box<dyn Error>> {
        restrict(user, parent, json_log)?;
        // No copy: nobody else in this process uses standard input.
        serve(io::stdin().as_fd())
    };
    run()
        .inspect_err(|error| {
            let text = crate::report::chain(error.as_ref());
            crate::report::print(&format!("No boot disk can be read: {text}"));
        })
        .is_ok()
}

fn restrict(user: Option<User>, parent: Option<Pid>, json_log: bool) -> Result<(), Box<dyn Error>> {
    if cfg!(feature = "bench-unrestricted") {
        return Ok(());
    }
    jail::enter(user)?;
    jail::limit_memory(MAX_MEMORY)?;
    if let Some(parent) = parent {
        jail::die_with(parent, Signal::KILL)?;
    }
    Ok(supervise::filter(
        Role::Bootdisk,
        Others::default(),
        json_log,
    )?)
}

fn serve(socket: BorrowedFd<'_>) -> Result<(), Box<dyn Error>> {
    let mut disks = protocol::Disks::default();
    loop {
        let (order, descriptors) = match control::receive(socket) {
            Ok(received) => received,
            Err(ControlError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        jail::end_after(Some(PATIENCE))?;
        let answered = disks.obey(order, descriptors);
        jail::end_after(None)?;
        if let Some((answer, files)) = answered {
            let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            match control::send(socket, &answer, &files) {
                Err(ControlError::Closed) => return Ok(()),
                sent => sent?,
            }
            drop(files);
            footprint::release();
        }
    }
}
