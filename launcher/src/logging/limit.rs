//! How often one place in the code may write to the log: a guest that resets itself, or its devices,
//! without end must not fill the node's disk.

use std::fmt::{Debug, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Messages of one place that are written in a [`PERIOD`].
const MOST: u32 = 10;
const PERIOD: Duration = Duration::from_secs(60);

/// Modules whose messages a guest can cause. What is said of a VMI or a network is bounded by itself.
const AT_RUN_TIME: [&str; 6] = [
    "devices",
    "vmm",
    "launcher::resources::boot",
    "launcher::supervise",
    "launcher::kubevirt::launcher",
    "launcher::kubevirt::notify",
];

/// Leaves messages out, and says so. Those for debugging are all written, which somebody asked for.
#[derive(Debug, Default)]
pub(super) struct Limit {
    /// A few dozen at most.
    places: Mutex<Vec<Place>>,
}

#[derive(Debug)]
struct Place {
    /// Address of what describes its messages.
    address: usize,
    since: Instant,
    count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Write,
    /// The first one that is left out.
    Announce,
    LeaveOut,
}

impl Limit {
    fn judge(&self, address: usize, now: Instant) -> Verdict {
        // Counters and times: never half written, so a panic elsewhere does not spoil them.
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let known = places.iter().position(|place| place.address == address);
        let index = known.unwrap_or_else(|| {
            places.push(Place {
                address,
                since: now,
                count: 0,
            });
            places.len() - 1
        });
        places[index].judge(now)
    }
}

impl Place {
    fn judge(&mut self, now: Instant) -> Verdict {
        if now.saturating_duration_since(self.since) >= PERIOD {
            (self.since, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        match self.count {
            0..=MOST => Verdict::Write,
            count if count == MOST + 1 => Verdict::Announce,
            _ => Verdict::LeaveOut,
        }
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        let mut modules = AT_RUN_TIME.iter();
        let limited = modules.any(|module| metadata.target().starts_with(module));
        if !limited || *metadata.level() > Level::INFO {
            return true;
        }
        let verdict = self.judge(std::ptr::from_ref(metadata).addr(), Instant::now());
        if verdict == Verdict::Announce {
            let mut message = Message::default();
            event.record(&mut message);
            // Comes back here, but from a module without limit.
            tracing::warn!("for a minute, no more of {:?}", message.0);
        }
        verdict == Verdict::Write
    }
}

/// The text of an event.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Writing to a string does not fail.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_its_own_limit_and_a_new_one_every_period() {
        let limit = Limit::default();
        let start = Instant::now();
        for period in 0..3 {
            let now = start + period * PERIOD;
            for _ in 0..MOST {
                assert_eq!(limit.judge(1, now), Verdict::Write);
            }
            let late = now + PERIOD - Duration::from_millis(1);
            assert_eq!(limit.judge(1, late), Verdict::Announce);
            for _ in 0..100 {
                assert_eq!(limit.judge(1, late), Verdict::LeaveOut);
            }
            assert_eq!(limit.judge(2, now), Verdict::Write);
        }
        let places = limit.places.lock().expect("no panic");
        assert_eq!(places.len(), 2);
    }
}
