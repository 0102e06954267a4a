//! How often one place in the code may write to the log, about each device: a guest that resets itself, or its devices,
//! without end must not fill the node's disk.

use std::fmt::{self, Debug, Display, Formatter, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
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

/// Fields by which the messages of a place are told apart.
const SUBJECTS: [&str; 3] = ["device", "disk", "nic"];

/// Places, with their subjects, that are remembered; devices that come and go have ever new names.
const MAX_PLACES: usize = 512;

/// Leaves messages out, and says so. Those for debugging are all written, which somebody asked for.
#[derive(Debug, Default)]
pub(super) struct Limit {
    places: Mutex<Vec<Place>>,
}

#[derive(Debug)]
struct Place {
    /// Address of what describes its messages.
    address: usize,
    /// What they are about, as a hash; 0 if that is not told.
    subject: u64,
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
    fn judge(&self, address: usize, subject: u64, now: Instant) -> Verdict {
        // Counters and times: never half written, so a panic elsewhere does not spoil them.
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= MAX_PLACES {
            places.retain(|place| !place.is_over(now));
        }
        // Rather one limit for all than none.
        let subject = if places.len() < MAX_PLACES {
            subject
        } else {
            0
        };
        let is_it = |place: &Place| (place.address, place.subject) == (address, subject);
        let known = places.iter().position(is_it);
        let index = known.unwrap_or_else(|| {
            places.push(Place {
                address,
                subject,
                since: now,
                count: 0,
            });
            places.len() - 1
        });
        places[index].judge(now)
    }
}

impl Place {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= PERIOD
    }

    fn judge(&mut self, now: Instant) -> Verdict {
        if self.is_over(now) {
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
        let mut subject = Subject::default();
        event.record(&mut subject);
        let address = std::ptr::from_ref(metadata).addr();
        let verdict = self.judge(address, subject.0, Instant::now());
        if verdict == Verdict::Announce {
            let mut message = Message::default();
            event.record(&mut message);
            // Comes back here, but from a module without limit.
            tracing::warn!("for a minute, no more of {message}");
        }
        verdict == Verdict::Write
    }
}

/// The text of an event, and what it is about.
#[derive(Default)]
struct Message {
    text: String,
    subjects: String,
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            name if SUBJECTS.contains(&name) => write!(self.subjects, " {name}={value:?}"),
            _ => Ok(()),
        };
    }
}

impl Display for Message {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}{}", self.text, self.subjects)
    }
}

/// What an event is about, as a hash.
#[derive(Default)]
struct Subject(u64);

impl Visit for Subject {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if SUBJECTS.contains(&field.name()) {
            let mut hasher = DefaultHasher::new();
            (self.0, format!("{value:?}")).hash(&mut hasher);
            self.0 = hasher.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Counts what passes the limit.
    #[derive(Clone, Default)]
    struct Count(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[derive(Clone, Default)]
    struct Announced(Arc<Mutex<String>>);

    impl<S: Subscriber> Layer<S> for Announced {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut message = Message::default();
            event.record(&mut message);
            *self.0.lock().expect("no panic") = message.to_string();
        }
    }

    #[test]
    fn what_is_announced_names_the_device() {
        let announced = Announced::default();
        let subscriber = tracing_subscriber::registry().with(announced.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(disk = "root", offset = 5, "host error");
        });
        let text = announced.0.lock().expect("no panic");
        assert_eq!(*text, "\"host error\" disk=\"root\"");
    }

    /// A disk that fails all the time does not hide what becomes of another.
    #[test]
    fn each_device_has_its_own_limit() {
        let count = Count::default();
        let subscriber = tracing_subscriber::registry().with(Limit::default());
        let subscriber = subscriber.with(count.clone());
        let complain = |disk: &str| tracing::warn!(target: "devices", disk, "host error");
        tracing::subscriber::with_default(subscriber, || {
            for disk in ["root", "root", "data", "root"] {
                (0..MOST).for_each(|_| complain(disk));
            }
        });
        // Not what is announced: a subscriber of one thread hears no event that comes of another.
        let passed = count.0.load(Ordering::Relaxed);
        assert_eq!(passed, 2 * MOST as usize);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let limit = Limit::default();
        let now = Instant::now();
        for subject in 1..10_000 {
            limit.judge(1, subject, now);
        }
        assert_eq!(limit.judge(1, 10_000, now), Verdict::LeaveOut);
        assert_eq!(limit.places.lock().expect("no panic").len(), MAX_PLACES + 1);
        assert_eq!(limit.judge(1, 1, now + PERIOD), Verdict::Write);
        assert_eq!(limit.places.lock().expect("no panic").len(), 1);
    }

    #[test]
    fn each_place_has_its_own_limit_and_a_new_one_every_period() {
        let limit = Limit::default();
        let start = Instant::now();
        for period in 0..3 {
            let now = start + period * PERIOD;
            for _ in 0..MOST {
                assert_eq!(limit.judge(1, 0, now), Verdict::Write);
            }
            let late = now + PERIOD - Duration::from_millis(1);
            assert_eq!(limit.judge(1, 0, late), Verdict::Announce);
            for _ in 0..100 {
                assert_eq!(limit.judge(1, 0, late), Verdict::LeaveOut);
            }
            assert_eq!(limit.judge(2, 0, now), Verdict::Write);
        }
        let places = limit.places.lock().expect("no panic");
        assert_eq!(places.len(), 2);
    }
}
