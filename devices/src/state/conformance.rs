//! What every device has to show, and a vCPU and the bus: a guest does not notice that its device was saved and
//! another one restored in its place.

use std::fmt::Debug;

/// A guest that uses one device in a fixed way.
pub trait Script: Sized {
    /// What it sees at one step.
    type Seen: Debug + PartialEq;

    /// Steps it takes.
    const STEPS: usize;

    /// The device and its guest; `None`, with the reason printed, where the host does not permit it.
    fn new() -> Option<Self>;

    /// Does step number `step`, from 0.
    fn step(&mut self, step: usize) -> Self::Seen;

    /// Saves the device and goes on with another one that was restored from that.
    fn replace(&mut self);
}

/// Compares runs in which the device is replaced once, before each step in turn, with one in which it
/// never is.
pub fn compare<S: Script>() {
    let Some(uninterrupted) = run::<S>(S::STEPS) else {
        return;
    };
    for at in 0..S::STEPS {
        let interrupted = run::<S>(at).expect("it was permitted before");
        assert_eq!(interrupted, uninterrupted, "replaced before step {at}");
    }
}

fn run<S: Script>(replaced_before: usize) -> Option<Vec<S::Seen>> {
    let mut script = S::new()?;
    let steps = (0..S::STEPS).map(|step| {
        if step == replaced_before {
            script.replace();
        }
        script.step(step)
    });
    Some(steps.collect())
}

/// Declares the test for a [`Script`].
#[cfg(test)]
macro_rules! goes_on_after_restore {
    ($name:ident, $script:ty) => {
        #[test]
        fn $name() {
            crate::state::conformance::compare::<$script>();
        }
    };
}
#[cfg(test)]
pub(crate) use goes_on_after_restore;
