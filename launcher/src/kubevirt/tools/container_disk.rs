//! `container-disk`: the only process of a container whose image has a disk in it. Virt-handler asks the kernel
//! who listens on its socket, and takes the disk from that process's root. It lives as long as the socket's name.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::supervise::Signals;

/// Between two looks at the socket's name: who removes it is in another container, and not every file system
/// tells.
const LOOK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Listen on this path, with `.sock` behind it, until that is removed.
    #[arg(short, long, value_name = "PATH", required_unless_present = "no_op")]
    copy_path: Option<PathBuf>,
    /// Do nothing: the image has arrived.
    #[arg(short, long)]
    no_op: bool,
}

pub(super) fn run(arguments: &Arguments) -> io::Result<()> {
    let Some(path) = arguments.copy_path.as_ref().filter(|_| !arguments.no_op) else {
        return Ok(());
    };
    // Process 1 is not ended by a signal that it does not wait for.
    let signals = Signals::block()?;
    let mut path = path.clone().into_os_string();
    path.push(".sock");
    let path = PathBuf::from(path);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    while path.exists() {
        let mut fds = [signals.as_fd(), listener.as_fd()]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut fds, Some(&LOOK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if signals.want_end() {
            return fs::remove_file(&path);
        }
        // That there is somebody is all that a client wants to know.
        while listener.accept().is_ok() {}
    }
    Ok(())
}
