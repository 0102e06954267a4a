//! A process beside this one, by `fork(2)`.
//!
//! Executing this program once more would give the new process an address space layout of its own, for
//! a sixth of the time of a start. Nothing has been read yet that the layout would have to be kept
//! from, and the new process forgets what it has inherited: environment and descriptors.

use std::ffi::c_char;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::Pid;

use super::close_inherited;

/// Makes a process that runs `child`, and ends well if that returns true. It has `socket` as its
/// standard input, this process's standard error as both outputs, no other descriptor and an empty
/// environment.
///
/// Fails with `EINVAL` where this process has more than one thread: the others, and the locks that
/// they hold, would be missing in the new one.
pub fn fork(socket: OwnedFd, child: impl FnOnce() -> bool) -> io::Result<Pid> {
    if !has_one_thread()? {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: there is one thread, so the child is a whole process and may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let done = keep_only(&socket)
                .inspect_err(|error| {
                    let mut stderr = io::stderr();
                    // Nobody is left to tell if it is closed.
                    let _ = writeln!(
                        stderr,
                        "podvisor: A new process cannot keep to itself: {error}"
                    );
                })
                .is_ok_and(|()| child());
            // Ends here: to go back would drop what is the parent's, and closed.
            std::process::exit(i32::from(!done))
        }
        // A process ID is positive.
        pid => Ok(Pid::from_raw(pid).unwrap_or(Pid::INIT)),
    }
}

/// Whether this process has one thread: so the kernel says, or where a container's profile refuses the
/// call (Docker's and containerd's do), the list of threads.
fn has_one_thread() -> io::Result<bool> {
    // SAFETY: for a process with one thread this does nothing; for others it fails.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL) => Ok(false),
        Some(libc::EPERM | libc::ENOSYS) => Ok(std::fs::read_dir("/proc/self/task")?.count() == 1),
        _ => Err(error),
    }
}

fn keep_only(socket: &OwnedFd) -> io::Result<()> {
    rustix::stdio::dup2_stdin(socket)?;
    rustix::stdio::dup2_stdout(io::stderr().as_fd())?;
    // What the parent has opened counts: the child neither uses nor drops it.
    close_inherited(&[])?;
    erase_environment();
    Ok(())
}

unsafe extern "C" {
    /// Environment of the process (environ(7)).
    static mut environ: *mut *mut c_char;
}

/// Overwrites all variables, of which `/proc/PID/environ` tells too.
fn erase_environment() {
    // SAFETY: there is no other thread. Each entry up to the null pointer is a string of this
    // process's initial stack, which is writable; nothing else refers to them.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            std::ptr::write_bytes(*entry, 0, libc::strlen(*entry));
            *entry = std::ptr::null_mut();
            entry = entry.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests run on threads of their own, beside the first one.
    #[test]
    fn a_process_with_threads_is_not_forked() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("sockets");
        let error = fork(socket.into(), || true).expect_err("more than one thread");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
