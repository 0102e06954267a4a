//! Locks on files, images above all, for as long as any process has them open.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Locks the whole file for as long as any process has this open file: alone for writing, together
/// with other readers for reading. QEMU's locks conflict with it as they should. False if somebody
/// else's lock is in the way; an error where there are no locks.
pub fn try_lock(file: impl AsFd, read_only: bool) -> Result<bool, Errno> {
    let kind = if read_only {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    match set(file, kind) {
        Ok(()) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Gives up the lock on an open file, whoever else has it open still.
pub(crate) fn unlock(file: impl AsFd) {
    // Where there are no locks, there is none to give up.
    let _ = set(file, libc::F_UNLCK);
}

fn set(file: impl AsFd, kind: libc::c_int) -> Result<(), Errno> {
    let whole_file = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file)).map(drop)
}
