//! When calls have waited long enough.

use std::time::{Duration, Instant};

/// Calls and when they are late.
#[derive(Debug, Default)]
pub(super) struct Deadlines(Vec<(Instant, u64)>);

impl Deadlines {
    /// `call` is late after so many seconds.
    pub(super) fn add(&mut self, call: u64, seconds: u32) {
        let time = Duration::from_secs(seconds.into());
        self.0.push((Instant::now() + time, call));
    }

    /// Milliseconds until the next call is late, or until `other`, as `epoll_wait` takes them; -1 for no end.
    pub(super) fn timeout(&self, other: Option<Instant>) -> i32 {
        let late = self.0.iter().map(|(when, _)| *when);
        let Some(next) = late.chain(other).min() else {
            return -1;
        };
        let left = next.saturating_duration_since(Instant::now());
        // Rounded up, so that it is past then.
        i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
    }

    /// The calls that are late now.
    pub(super) fn take_past(&mut self) -> Vec<u64> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        let past = self.0.extract_if(.., |(when, _)| *when <= now);
        past.map(|(_, call)| call).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_late_once() {
        let mut deadlines = Deadlines::default();
        assert_eq!(deadlines.timeout(None), -1);
        assert!(deadlines.take_past().is_empty());
        deadlines.add(7, 0);
        deadlines.add(8, u32::MAX);
        assert!((0..=1).contains(&deadlines.timeout(None)));
        assert_eq!(deadlines.take_past(), [7]);
        assert!(deadlines.take_past().is_empty());
        assert_eq!(deadlines.timeout(None), i32::MAX);
        assert!((0..=1).contains(&deadlines.timeout(Some(Instant::now()))));
    }
}
