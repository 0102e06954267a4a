//! A short wait for the driver's next request without going to sleep.
//!
//! Putting the thread to sleep and having the driver wake it costs some 20 us on each side. A
//! driver that answers completions at once with new requests takes a fraction of that, so it pays
//! to look for a moment; for one that does not, waiting is given up quickly and tried again rarely.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// Longest wait: about what sleeping and waking would cost.
const LONGEST: Duration = Duration::from_micros(16);
/// Shorter waits are not worth the while.
const SHORTEST: Duration = Duration::from_micros(2);
/// Without hope, every so many times one wait is tried.
const RETRY: u32 = 32;
/// Looks between two readings of the clock.
const LOOKS: u32 = 16;

/// How long it is worth to wait, by experience.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Duration,
    skipped: u32,
}

impl Patience {
    /// No experience yet.
    pub(super) fn new() -> Self {
        Self {
            limit: LONGEST,
            skipped: 0,
        }
    }

    /// Waits until `ready` says true, as long as experience allows; whether it did.
    pub(super) fn wait(&mut self, mut ready: impl FnMut() -> bool) -> bool {
        let limit = match self.limit {
            Duration::ZERO if self.skipped < RETRY => {
                self.skipped += 1;
                return false;
            }
            // The driver may be on its way back from its own kick, which takes most of that.
            Duration::ZERO => LONGEST,
            limit => limit,
        };
        self.skipped = 0;
        let begin = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if ready() {
                    self.limit = LONGEST;
                    return true;
                }
                spin_loop();
            }
            if begin.elapsed() >= limit {
                let less = limit / 2;
                self.limit = if less < SHORTEST {
                    Duration::ZERO
                } else {
                    less
                };
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hope_goes_when_nothing_comes_and_returns_with_success() {
        let mut patience = Patience::new();
        let mut looked = 0;
        for _ in 0..8 {
            assert!(!patience.wait(|| false));
        }
        assert_eq!(patience.limit, Duration::ZERO);
        for _ in 0..RETRY - 8 {
            assert!(!patience.wait(|| {
                looked += 1;
                true
            }));
        }
        assert_eq!(looked, 0, "it waits without hope");
        let tries = (0..RETRY).find(|_| patience.wait(|| true));
        assert!(tries.is_some(), "it never tries again");
        assert_eq!(patience.limit, LONGEST);
    }

    #[test]
    fn a_wait_ends() {
        let begin = Instant::now();
        assert!(!Patience::new().wait(|| false));
        assert!(begin.elapsed() >= LONGEST);
    }
}
