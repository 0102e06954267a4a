//! Signals before there is anything to end in order.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

use vmm_sys_util::signal::{block_signal, register_signal_handler, unblock_signal};

static STATUS: AtomicI32 = AtomicI32::new(0);

extern "C" fn leave(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: async-signal-safe (signal-safety(7)); ends the process.
    unsafe { libc::_exit(STATUS.load(Ordering::Relaxed)) }
}

/// Has each of the signals end the process with `status`, as process 1 of a container, too, whatever it waits
/// for. They are blocked, or their handlers replaced, once there is something to put back.
pub fn exit_on(signals: impl IntoIterator<Item = libc::c_int>, status: i32) -> io::Result<()> {
    STATUS.store(status, Ordering::Relaxed);
    for signal in signals {
        register_signal_handler(signal, leave)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        // Who started this process may have blocked it, and a process begins with its parent's mask.
        unblock_signal(signal).map_err(|error| io::Error::other(error.to_string()))?;
    }
    Ok(())
}

/// Whether the process ignores the signal, as under `nohup`.
pub fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: changes nothing, and writes at most one `sigaction` to the place it is given.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeros is a `sigaction`, if the call wrote none.
    let action = unsafe { action.assume_init() };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// For a process beside the launcher: a terminal sends its signals to all, and only the launcher acts on them. A
/// write that fails says so by itself.
pub fn leave_to_launcher() {
    for signal in [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGPIPE,
        libc::SIGXFSZ,
    ] {
        // Blocking one that is blocked is the only error, and no error to us.
        let _ = block_signal(signal);
    }
}
