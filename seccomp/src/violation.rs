//! The report of a forbidden system call.
//!
//! The filters answer with SIGSYS instead of killing at once, so that the process can say which
//! call it was. The call itself is not made. The handler writes one message to the launcher and
//! then makes a forbidden call with the signal blocked, which the kernel answers by killing the
//! process with SIGSYS. A compromised thread can skip the report but gains nothing by it.

use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::Role;

thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::Process) };
}

static REPORT_FD: AtomicI32 = AtomicI32::new(-1);

pub(crate) fn set_role(role: Role) {
    ROLE.set(role);
}

/// Has violations reported on `socket`, a packet socket that stays open as long as the process:
/// one JSON object, `{"event":"seccompViolation","role":…,"syscall":…}`.
pub fn report_to(socket: RawFd) -> io::Result<()> {
    REPORT_FD.store(socket, Ordering::Relaxed);
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
    let mut message = Message::new();
    message.push(b"{\"event\":\"seccompViolation\",\"role\":\"");
    message.push(ROLE.get().name().as_bytes());
    message.push(b"\",\"syscall\":");
    message.push_number(syscall.unsigned_abs());
    message.push(b"}");
    let bytes = message.bytes();
    // SAFETY: writes bytes of this stack frame. Whether it succeeds makes no difference here.
    unsafe {
        libc::write(
            REPORT_FD.load(Ordering::Relaxed),
            bytes.as_ptr().cast(),
            bytes.len(),
        )
    };
    // SAFETY: no filter allows this call; with SIGSYS blocked in its handler the kernel kills.
    unsafe { libc::syscall(libc::SYS_setuid, 0) };
    // SAFETY: ends the process; reached only if no filter is installed.
    unsafe { libc::_exit(1) };
}

/// A short text without allocation.
struct Message {
    buffer: [u8; 96],
    len: usize,
}

impl Message {
    fn new() -> Self {
        Self {
            buffer: [0; 96],
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
        message.push(&[b'x'; 200]);
        assert_eq!(message.bytes().len(), 96);
    }
}
