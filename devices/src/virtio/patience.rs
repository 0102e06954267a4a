//! A short wait for the next request or packet without going to sleep.
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

impl Default for Patience {
    /// No experience yet.
    fn default() -> Self {
        Self {
            limit: LONGEST,
            skipped: 0,
        }
    }
}

impl Patience {
    /// Waits until `ready` says true, as long as experience allows; whether it did.
    pub(super) fn wait<E>(
        &mut self,
        mut ready: impl FnMut() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let limit = match self.limit {
            Duration::ZERO if self.skipped < RETRY => {
                self.skipped += 1;
                return Ok(false);
            }
            // The driver may be on its way back from its own kick, which takes most of that.
            Duration::ZERO => LONGEST,
            limit => limit,
        };
        self.skipped = 0;
        let begin = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if ready()? {
                    self.limit = LONGEST;
                    return Ok(true);
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
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it sees something that is there, or not there, from the start.
    fn sees(patience: &mut Patience, there: bool, looked: &mut u32) -> bool {
        let look = || {
            *looked += 1;
            Ok::<_, ()>(there)
        };
        patience.wait(look).expect("looking does not fail")
    }

    #[test]
    fn hope_goes_when_nothing_comes_and_returns_with_success() {
        let mut patience = Patience::default();
        let mut looked = 0;
        for _ in 0..8 {
            assert!(!sees(&mut patience, false, &mut looked));
        }
        assert_eq!(patience.limit, Duration::ZERO);
        looked = 0;
        for _ in 0..RETRY - 8 {
            assert!(!sees(&mut patience, true, &mut looked));
        }
        assert_eq!(looked, 0, "it waits without hope");
        let tries = (0..RETRY).find(|_| sees(&mut patience, true, &mut looked));
        assert!(tries.is_some(), "it never tries again");
        assert_eq!(patience.limit, LONGEST);
    }

    #[test]
    fn a_wait_ends() {
        let begin = Instant::now();
        assert!(!sees(&mut Patience::default(), false, &mut 0));
        assert!(begin.elapsed() >= LONGEST);
    }

    #[test]
    fn an_error_ends_it() {
        assert_eq!(Patience::default().wait(|| Err("lost")), Err("lost"));
    }
}
