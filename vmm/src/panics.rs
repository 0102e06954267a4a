//! What becomes of a panic: one message that says so, and the end of the process by `SIGABRT`.
//!
//! The C library's `abort` is of no use in a restricted thread: musl's makes a system call that no filter
//! has, and a panic, or what Rust's own library ends a process for (a stack that overflows, an allocation that fails, each
//! with a message of its own), would be taken for a violation.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::os::fd::OwnedFd;
use std::panic::{self, PanicHookInfo};
use std::sync::Arc;

use crate::control::{Event, MachineState};

/// From now on a panic of any thread is logged, told to the launcher where there is a `socket` to it, and ends the
/// process.
pub fn report(socket: Option<Arc<OwnedFd>>) {
    panic::set_hook(Box::new(move |info| {
        let (event, thread) = describe(info);
        if let Event::Panicked { message, place, .. } = &event {
            tracing::error!(thread, place, "panic: {message}");
        }
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            tracing::error!("{trace}");
        }
        if let Some(socket) = &socket
            && let Ok(bytes) = serde_json::to_vec(&event.with(MachineState::Ended))
        {
            // Whether it succeeds makes no difference here. Not `sendmsg`, which few threads may call.
            let _ = rustix::io::write(socket, &bytes);
        }
        die()
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> (Event, String) {
    let thread = std::thread::current().name().unwrap_or("?").to_owned();
    let message = info.payload_as_str().unwrap_or("no message").to_owned();
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let event = Event::Panicked {
        thread: thread.clone(),
        message,
        place,
    };
    (event, thread)
}

/// `abort(3)` for all of the binary, in place of musl's.
// SAFETY: does what the C library's own of this name does, which is not linked then; nothing else has the name.
#[cfg(target_env = "musl")]
#[unsafe(no_mangle)]
extern "C" fn abort() -> ! {
    die()
}

/// As `abort(3)`, by a call that every filter allows.
fn die() -> ! {
    // SAFETY: the calls read no memory. SIGABRT is neither handled nor blocked; if it does not end the process,
    // `_exit` does, of which nothing is expected but that.
    unsafe {
        let thread = libc::syscall(libc::SYS_gettid);
        libc::syscall(libc::SYS_tgkill, std::process::id(), thread, libc::SIGABRT);
        libc::_exit(134)
    }
}
