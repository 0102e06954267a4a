//! `virt-tail`: prints what the guest writes on its serial console, line by line, for `kubectl logs`. It runs
//! beside the launcher, begins before there is a file, and ends with the machine's socket or by a signal.

mod follow;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use self::follow::Follower;
use crate::streams::{Patient, Stopped};
use crate::supervise::Signals;

/// Longest time without a look at the file.
const LOOK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// What a log's name has more than its console's socket.
const LOG: &str = "-log";

/// Behind the log's name: KubeVirt's sign that no more comes.
const DONE: &str = "-sigTerm-done";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The log to print: a console's socket and `-log`.
    #[arg(long, value_name = "PATH")]
    logfile: PathBuf,
    /// Nothing: a machine is waited for as long as it takes.
    #[arg(long, value_name = "DURATION")]
    socket_timeout: Option<String>,
    /// Nothing: what a newer KubeVirt may say.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    others: Vec<OsString>,
}

pub(super) fn run(arguments: &Arguments) -> io::Result<()> {
    let log = &arguments.logfile;
    let text = log.to_string_lossy();
    let socket = PathBuf::from(text.strip_suffix(LOG).unwrap_or(&text));
    let done = PathBuf::from(format!("{text}{DONE}"));
    let signals = Signals::block()?;
    let mut watch = Watch::new(log)?;
    let mut follower = Follower::new(log.clone());
    // A reader that does not read does not keep signals from it.
    let mut output = Patient::new(io::stdout(), &signals);
    let mut had_socket = false;
    let mut is_last = false;
    let mut print = || {
        while !is_last {
            is_last = watch.wait(&signals)? || done.exists() || (had_socket && !socket.exists());
            had_socket |= socket.exists();
            follower.print(&mut output)?;
        }
        follower.finish(&mut output)
    };
    match print() {
        Err(error) if Stopped::is(&error) => Ok(()),
        done => done,
    }
}

/// Tells when something happens in the log's directory, once that is there.
struct Watch {
    directory: PathBuf,
    inotify: OwnedFd,
    is_set: bool,
}

impl Watch {
    fn new(log: &Path) -> io::Result<Self> {
        Ok(Self {
            directory: log.parent().unwrap_or(Path::new("/")).to_owned(),
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            is_set: false,
        })
    }

    /// Waits for a change, or for a moment; whether a signal wants the end.
    fn wait(&mut self, signals: &Signals) -> io::Result<bool> {
        if !self.is_set {
            let changes =
                WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::MOVE | WatchFlags::DELETE;
            self.is_set = inotify::add_watch(&self.inotify, &self.directory, changes).is_ok();
        }
        let mut fds = [signals.as_fd(), self.inotify.as_fd()]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut fds, Some(&LOOK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // What it was does not matter.
        let mut changes = [0; 4096];
        while rustix::io::read(&self.inotify, &mut changes).is_ok_and(|len| len > 0) {}
        Ok(signals.want_end())
    }
}
