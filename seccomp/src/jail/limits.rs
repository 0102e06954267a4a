//! Resource limits.

use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit};

use super::{JailError, call};

/// Descriptors that a vm process may have open before its plan is known: the largest machine, 31 disks of 64
/// queues each, needs some 10 000.
const MAX_DESCRIPTORS: u64 = 16 * 1024;

/// Threads that a vm process may have: vCPUs, a worker for each queue, and the kernel's own for
/// requests of io_uring that would block.
const MAX_THREADS: u64 = 4096;

/// Sets the limits that are the same for every machine. `alone` tells that nobody else counts as
/// this user: elsewhere a limit on its processes would be shared with all pods of the node that
/// run as the same number, and is only made what it may be at most.
pub(super) fn set(alone: bool) -> Result<(), JailError> {
    forbid_core_dumps()?;
    lower(Resource::Nofile, MAX_DESCRIPTORS)?;
    lower(Resource::Nproc, if alone { MAX_THREADS } else { u64::MAX })
}

pub(super) fn forbid_core_dumps() -> Result<(), JailError> {
    lower(Resource::Core, 0)
}

/// Allows this process `count` open descriptors, or as many as it is allowed already.
pub fn limit_descriptors(count: u64) -> Result<(), JailError> {
    lower(Resource::Nofile, count)
}

/// Forbids to map more than so many bytes of memory, code included.
pub fn limit_memory(bytes: u64) -> Result<(), JailError> {
    lower(Resource::As, bytes)
}

/// Has the kernel end this process, by SIGALRM, when so much time has passed; with none, not any more. Filters allow it
/// to who needs it.
pub fn end_after(time: Option<Duration>) -> Result<(), JailError> {
    let seconds = time.map_or(0, |time| time.as_secs().max(1));
    let zero = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    let timer = libc::itimerval {
        it_interval: zero,
        it_value: libc::timeval {
            // At once, where it does not fit, which is never.
            tv_sec: seconds.try_into().unwrap_or(1),
            tv_usec: 0,
        },
    };
    // SAFETY: reads a structure of this stack frame and writes nothing.
    match unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(JailError::Call {
            action: "set a timer",
            source: io::Error::last_os_error(),
        }),
    }
}

fn lower(resource: Resource, value: u64) -> Result<(), JailError> {
    let maximum = rustix::process::getrlimit(resource)
        .maximum
        .unwrap_or(u64::MAX);
    let value = Some(value.min(maximum));
    let limit = Rlimit {
        current: value,
        maximum: value,
    };
    rustix::process::setrlimit(resource, limit).map_err(call("set a resource limit"))
}
