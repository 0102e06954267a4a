//! When the steps of a start were done, for `--boot-trace`: a fixed number of marks per process, and of its guest,
//! taken always, because one costs less than a question whether somebody wants it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Marks that are kept; a start has fewer, and those of later resets are of no interest.
const MAX_MARKS: usize = 32;

static MARKS: Mutex<Vec<Mark>> = Mutex::new(Vec::new());

/// What the guest has come to.
static GUEST: Mutex<Vec<Mark>> = Mutex::new(Vec::new());

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
    lock(&MARKS).clear();
    mark("start");
}

/// Notes that a step is done.
pub fn mark(step: &str) {
    add(&mut lock(&MARKS), step);
}

/// Notes that the guest has come to a step, if it has not before: one that starts anew has done so.
pub fn mark_guest(step: &str) {
    let mut marks = lock(&GUEST);
    if marks.iter().all(|mark| mark.step != step) {
        add(&mut marks, step);
    }
}

fn add(marks: &mut Vec<Mark>, step: &str) {
    let now = clock_gettime(ClockId::Monotonic);
    let at_ns = now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs();
    if marks.len() < MAX_MARKS {
        let step = step.to_owned();
        marks.push(Mark { step, at_ns });
    }
}

/// The marks of this process so far, in order.
pub fn marks() -> Vec<Mark> {
    lock(&MARKS).clone()
}

/// The steps that the guest has come to, in order.
pub fn guest_marks() -> Vec<Mark> {
    lock(&GUEST).clone()
}

/// The guard of plain data, which is never half written.
fn lock(marks: &Mutex<Vec<Mark>>) -> MutexGuard<'_, Vec<Mark>> {
    marks.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn a_guest_that_starts_anew_is_not_marked_again() {
        let steps = ["its kernel", "its init"];
        for step in [steps, steps].concat() {
            mark_guest(step);
        }
        // Other tests mark steps of their guests, too.
        let marks = guest_marks().into_iter().map(|mark| mark.step);
        let ours: Vec<_> = marks.filter(|mark| mark.starts_with("its ")).collect();
        assert_eq!(ours, steps);
    }
}
