//! Errors of the host that devices meet while they serve a guest, for whoever runs the machine.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::wake::Wake;

/// Errors that wait to be taken.
const MAX_WAITING: usize = 64;

/// What the host could not do for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    /// The device's name.
    pub device: Arc<str>,
    /// What was tried.
    pub operation: &'static str,
    /// Where in the device, bytes.
    pub offset: u64,
    /// The error number of the host.
    pub errno: i32,
    /// Errors of this device since the last one that was told.
    pub untold: u32,
    /// The machine is to stand still: the device tries again when it goes on.
    pub stops: bool,
}

/// Where devices put them. It outlives a reset.
#[derive(Debug)]
pub struct HostErrors {
    /// Room for all was made at the start: a worker may not be allowed to get memory.
    waiting: Mutex<VecDeque<HostError>>,
    wake: Wake,
}

impl HostErrors {
    /// None yet. Fails if the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            waiting: Mutex::new(VecDeque::with_capacity(MAX_WAITING)),
            wake: Wake::new()?,
        })
    }

    /// Tells of one. Where too many wait it is dropped, except that a machine which is to stand still will.
    pub fn push(&self, error: HostError) {
        let mut waiting = self.lock();
        if waiting.len() < MAX_WAITING {
            waiting.push_back(error);
        } else if let Some(last) = waiting.back_mut() {
            last.stops |= error.stops;
            last.untold = last.untold.saturating_add(1);
        }
        drop(waiting);
        self.wake.wake();
    }

    /// The next one. The descriptor is readable until there is none.
    pub fn take(&self) -> Option<HostError> {
        let mut waiting = self.lock();
        let next = waiting.pop_front();
        if waiting.is_empty() {
            self.wake.clear();
        }
        next
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<HostError>> {
        // Nothing below the lock panics half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for HostErrors {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(offset: u64, stops: bool) -> HostError {
        HostError {
            device: "root".into(),
            operation: "write",
            offset,
            errno: libc::ENOSPC,
            untold: 0,
            stops,
        }
    }

    #[test]
    fn errors_come_in_order_and_are_bounded() {
        let errors = HostErrors::new().expect("an eventfd");
        assert_eq!(errors.take(), None);
        for offset in 0..MAX_WAITING as u64 {
            errors.push(error(offset, false));
        }
        errors.push(error(1 << 20, true));
        let taken: Vec<_> = std::iter::from_fn(|| errors.take()).collect();
        assert_eq!(taken.len(), MAX_WAITING);
        assert_eq!(taken[1], error(1, false));
        let last = &taken[MAX_WAITING - 1];
        assert!(last.stops && last.untold == 1, "{last:?}");
    }
}
