//! What the kernel would let this process do, found by trying. For `podvisor check-host`.

use std::io;

use rustix::thread::UnshareFlags;

/// `landlock_create_ruleset` with this flag tells the version.
const LANDLOCK_CREATE_RULESET_VERSION: libc::c_ulong = 1;

/// `seccomp` with this operation tells whether an action is known.
const SECCOMP_GET_ACTION_AVAIL: libc::c_ulong = 2;

/// The version of Landlock.
pub fn landlock_abi() -> io::Result<i64> {
    // SAFETY: with this flag the call reads no memory.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            0,
            0,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    result(version)
}

/// Whether filters can be installed that answer with a signal.
pub fn seccomp() -> io::Result<()> {
    let action: u32 = libc::SECCOMP_RET_TRAP;
    // SAFETY: reads the action, which outlives the call.
    let known = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    result(known).map(drop)
}

/// Whether namespaces can be made without privileges. Leaves the process in them, so ask last.
pub fn namespaces() -> io::Result<()> {
    let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNS;
    // SAFETY: FILES is not among the flags, so descriptors stay what they are.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

fn result(value: libc::c_long) -> io::Result<i64> {
    match value {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}
