//! A descriptor by which one thread wakes another that polls it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// An eventfd that no crate has to see: KVM's are `vmm_sys_util`'s, which do not lend their descriptor.
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// Not readable yet. Fails if the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Makes it readable. A poller that waits for edges sees one even where it was readable before.
    pub fn wake(&self) {
        // Fails only where the counter is about to overflow; then the poller is awake anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it unreadable; whether it was readable.
    pub fn clear(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_and_is_cleared_without_blocking() {
        let wake = Wake::new().expect("an eventfd");
        assert!(!wake.clear());
        wake.wake();
        wake.wake();
        assert!(wake.clear());
        assert!(!wake.clear());
    }
}
