//! Whether the host's page cache takes writes at once.
//!
//! `io_uring` hands cached writes to a thread of its own on file systems such as ext4, which costs
//! more than a short write. So the worker writes itself. But the kernel makes those wait who write
//! faster than the storage, and requests behind such a write would wait too: after a write that took
//! long all go to `io_uring` again, until none has for a while. While the kernel throttles, none is
//! ever that calm; so of the requests of a queue few wait for a write, and only for one.

use std::time::{Duration, Instant};

/// A write that waits for nothing takes some microseconds, or a few milliseconds if another process
/// gets the processor meanwhile. The kernel makes writers wait for 10 to 200 ms.
const LONG: Duration = Duration::from_millis(5);
/// Throttled writers wait again sooner than that.
const CALM: Duration = Duration::from_millis(100);
/// Longer writes keep the others waiting by their length alone.
const LARGEST: u64 = 64 * 1024;
/// The host's page: of one that is written in part, the rest may have to be read first.
const PAGE: u64 = 4096;

/// How writes fared of late.
#[derive(Debug, Default)]
pub(super) struct Prompt {
    /// When the last write that took long was over.
    slow_at: Option<Instant>,
}

impl Prompt {
    /// Whether a write of `len` bytes at `offset` is likely to be done at once.
    pub(super) fn expects(&self, offset: u64, len: u64, now: Instant) -> bool {
        let is_calm = |at| now.saturating_duration_since(at) >= CALM;
        len <= LARGEST && (offset | len).is_multiple_of(PAGE) && self.slow_at.is_none_or(is_calm)
    }

    /// Takes note of a write, whoever did it.
    pub(super) fn took(&mut self, started: Instant, time: Duration) {
        if time >= LONG {
            self.slow_at = Some(started + time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_write_is_enough_until_it_was_calm_for_a_while() {
        let start = Instant::now();
        let mut prompt = Prompt::default();
        prompt.took(start, LONG / 2);
        assert!(prompt.expects(0, PAGE, start));
        prompt.took(start, 40 * LONG);
        let end = start + 40 * LONG;
        assert!(!prompt.expects(0, PAGE, start), "the burst it was in");
        assert!(!prompt.expects(0, PAGE, end + CALM / 2));
        prompt.took(end + CALM / 2, LONG);
        assert!(!prompt.expects(0, PAGE, end + CALM));
        assert!(prompt.expects(0, PAGE, end + 2 * CALM));
    }

    #[test]
    fn long_writes_and_parts_of_pages_may_wait() {
        let (prompt, now) = (Prompt::default(), Instant::now());
        assert!(prompt.expects(PAGE, LARGEST, now));
        assert!(!prompt.expects(0, LARGEST + PAGE, now));
        assert!(!prompt.expects(512, PAGE, now));
        assert!(!prompt.expects(0, 512, now));
    }
}
