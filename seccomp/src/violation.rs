//! The report of a forbidden system call.
//!
//! The filters answer with SIGSYS instead of killing at once, so that the process can say which
//! call it was. The call itself is not made. The handler writes one message to the launcher and
//! then makes a forbidden call with the signal blocked, which the kernel answers by killing the
//! process with SIGSYS. A compromised thread can skip the report but gains nothing by it. The launcher,
//! which has nobody above it to tell, writes to its log and ends with status 1.

use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;
use std::sync::OnceLock;

use crate::Role;

thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::Process) };
}

static REPORT: OnceLock<Report> = OnceLock::new();

/// How a violation is told.
#[derive(Clone, Copy, Debug)]
pub enum Report {
    /// To the launcher, on a packet socket that stays open as long as the process: one JSON object,
    /// `{"event":"seccompViolation","role":…,"syscall":…,"state":"ended"}`.
    Event(RawFd),
    /// To people, on standard error; the process then ends with status 1.
    Message {
        /// As a JSON object, like the rest of the log.
        json: bool,
        /// Tells the name of a call without allocation.
        name: fn(u32) -> &'static str,
    },
}

pub(crate) fn set_role(role: Role) {
    ROLE.set(role);
}

/// Has violations reported. Only the first call in a process counts.
pub fn report_to(report: Report) -> io::Result<()> {
    let _ = REPORT.set(report);
    // SAFETY: an all-zero sigaction is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler is async-signal-safe: it formats on its stack and makes system calls.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Offset of `si_syscall` in `siginfo_t` (Linux `include/uapi/asm-generic/siginfo.h`, 64-bit):
/// signal, error, code, padding, then the call's address.
const SYSCALL_OFFSET: usize = 24;

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: for SIGSYS the kernel fills the siginfo beyond this offset.
    let syscall = unsafe {
        info.cast::<u8>()
            .add(SYSCALL_OFFSET)
            .cast::<i32>()
            .read_unaligned()
    };
    let number = syscall.cast_unsigned();
    match REPORT.get() {
        Some(Report::Event(socket)) => event(ROLE.get(), number).write_to(*socket),
        Some(Report::Message { json, name }) => {
            message(*json, ROLE.get(), number, name(number)).write_to_log();
            // SAFETY: ends the process.
            unsafe { libc::_exit(1) };
        }
        None => {}
    }
    // SAFETY: no filter allows this call; with SIGSYS blocked in its handler the kernel kills.
    unsafe { libc::syscall(libc::SYS_setuid, 0) };
    // SAFETY: ends the process; reached only if no filter is installed.
    unsafe { libc::_exit(1) };
}

fn event(role: Role, number: u32) -> Message {
    let mut message = Message::new();
    message.push(b"{\"event\":\"seccompViolation\",\"role\":\"");
    message.push(role.name().as_bytes());
    message.push(b"\",\"syscall\":");
    message.push_number(number);
    message.push(b",\"state\":\"ended\"}");
    message
}

fn message(json: bool, role: Role, number: u32, name: &str) -> Message {
    let (before, after): (&[u8], &[u8]) = if json {
        (
            b"{\"level\":\"ERROR\",\"fields\":{\"message\":\"The ",
            b"\"}}\n",
        )
    } else {
        (b"podvisor: The ", b"\n")
    };
    let mut message = Message::new();
    message.push(before);
    message.push(role.name().as_bytes());
    message.push(b" made system call ");
    message.push_number(number);
    message.push(b" (");
    message.push(name.as_bytes());
    message.push(b"), which its seccomp filter forbids, and ends. This is a bug in podvisor.");
    message.push(after);
    message
}

/// A short text without allocation.
struct Message {
    buffer: [u8; 256],
    len: usize,
}

impl Message {
    fn new() -> Self {
        Self {
            buffer: [0; 256],
            len: 0,
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(slot) = self.buffer.get_mut(self.len) {
                *slot = *byte;
                self.len += 1;
            }
        }
    }

    fn push_number(&mut self, number: u32) {
        let mut divisor = 1_000_000_000;
        while divisor > 1 && number / divisor == 0 {
            divisor /= 10;
        }
        while divisor > 0 {
            // A decimal digit.
            self.push(&[b'0' + (number / divisor % 10) as u8]);
            divisor /= 10;
        }
    }

    /// Whether it succeeds makes no difference here.
    fn write_to(&self, fd: RawFd) {
        let bytes = self.bytes();
        // SAFETY: writes bytes of this value.
        unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    }

    /// The same, without waiting for who reads the log, where the kernel can.
    fn write_to_log(&self) {
        let bytes = self.bytes();
        let part = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        const HERE: libc::c_long = -1;
        // SAFETY: writes the bytes of this value that `part` names.
        let written = unsafe {
            libc::syscall(
                libc::SYS_pwritev2,
                libc::STDERR_FILENO,
                &raw const part,
                1,
                HERE,
                HERE,
                libc::RWF_NOWAIT,
            )
        };
        if written < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) {
            self.write_to(libc::STDERR_FILENO);
        }
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_full_and_text_is_cut() {
        for number in [0, 7, 10, 435, u32::MAX] {
            let mut message = Message::new();
            message.push_number(number);
            assert_eq!(message.bytes(), number.to_string().as_bytes());
        }
        let mut message = Message::new();
        message.push(&[b'x'; 300]);
        assert_eq!(message.bytes().len(), 256);
    }
}
