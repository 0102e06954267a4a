//! When the steps of a start were done, for `--boot-trace`: a fixed number of marks per process,
//! taken always, because one costs less than a question whether somebody wants it.

use std::sync::{Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Marks that are kept; a start has fewer, and those of later resets are of no interest.
const MAX_MARKS: usize = 32;

static MARKS: Mutex<Vec<Mark>> = Mutex::new(Vec::new());

/// The end of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    /// What was done.
    pub step: String,
    /// When it was done: `CLOCK_MONOTONIC`, nanoseconds, the same clock in all processes.
    pub at_ns: u64,
}

/// Begins the marks of a process, which may be a fork and have its parent's.
pub fn begin() {
    MARKS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    mark("start");
}

/// Notes that a step is done.
pub fn mark(step: &str) {
    let now = clock_gettime(ClockId::Monotonic);
    let at_ns = now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs();
    let mut marks = MARKS.lock().unwrap_or_else(PoisonError::into_inner);
    if marks.len() < MAX_MARKS {
        let step = step.to_owned();
        marks.push(Mark { step, at_ns });
    }
}

/// The marks of this process so far, in order.
pub fn marks() -> Vec<Mark> {
    MARKS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_in_order_and_bounded() {
        for _ in 0..2 * MAX_MARKS {
            mark("step");
        }
        let marks = marks();
        assert_eq!(marks.len(), MAX_MARKS);
        assert!(marks.is_sorted_by_key(|mark| mark.at_ns));
    }
}
