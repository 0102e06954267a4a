//! When calls have waited long enough, and what was refused is tried again.

use std::time::{Duration, Instant};

/// Time before what was refused is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What is due, and when.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    /// Calls that are late then.
    calls: Vec<(Instant, u64)>,
    again: Option<Instant>,
}

impl Deadlines {
    /// `call` is late after so many seconds.
    pub(super) fn add(&mut self, call: u64, seconds: u32) {
        let time = Duration::from_secs(seconds.into());
        self.calls.push((Instant::now() + time, call));
    }

    /// Something is to be tried again.
    pub(super) fn try_again(&mut self) {
        self.again = Some(Instant::now() + AGAIN);
    }

    /// Whether it is time for that.
    pub(super) fn take_again(&mut self) -> bool {
        self.again.take_if(|when| *when <= Instant::now()).is_some()
    }

    /// Milliseconds until something is due, or until `other`, as `epoll_wait` takes them; -1 for no end.
    pub(super) fn timeout(&self, other: Option<Instant>) -> i32 {
        let late = self.calls.iter().map(|(when, _)| *when);
        let Some(next) = late.chain(self.again).chain(other).min() else {
            return -1;
        };
        let left = next.saturating_duration_since(Instant::now());
        // Rounded up, so that it is past then.
        i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
    }

    /// The calls that are late now.
    pub(super) fn take_past(&mut self) -> Vec<u64> {
        if self.calls.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        let past = self.calls.extract_if(.., |(when, _)| *when <= now);
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

    #[test]
    fn what_is_tried_again_is_waited_for() {
        let mut deadlines = Deadlines::default();
        deadlines.try_again();
        let timeout = deadlines.timeout(None);
        assert!((0..=1001).contains(&timeout), "{timeout}");
        deadlines.again = Some(Instant::now());
        assert!(deadlines.take_again() && !deadlines.take_again());
        assert_eq!(deadlines.timeout(None), -1);
    }
}
