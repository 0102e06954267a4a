//! What the agent is asked for regularly, and when: at once, then after ten seconds, and then ever more seldom, as far as
//! virt-launcher does.

use std::time::Duration;

use tokio::time::Instant;

/// Time before something is asked for again.
const FIRST: Duration = Duration::from_secs(10);

/// Commands without arguments, and the longest time before they are given again, seconds.
pub(super) const COMMANDS: [(&str, u64); 8] = [
    ("guest-info", 300),
    (FREEZE_STATUS, 5),
    ("guest-get-osinfo", 120),
    ("guest-network-get-interfaces", 120),
    ("guest-get-host-name", 120),
    ("guest-get-timezone", 120),
    ("guest-get-fsinfo", 300),
    ("guest-get-users", 10),
];

/// Whether the guest's file systems are frozen.
pub(super) const FREEZE_STATUS: &str = "guest-fsfreeze-status";

#[derive(Debug)]
struct Poll {
    command: &'static str,
    due: Instant,
    interval: Duration,
    longest: Duration,
}

/// The schedule.
#[derive(Debug)]
pub(super) struct Polls([Poll; COMMANDS.len()]);

impl Polls {
    /// All are due at once, in their order.
    pub(super) fn new(now: Instant) -> Self {
        Self(COMMANDS.map(|(command, longest)| {
            let longest = Duration::from_secs(longest);
            Poll {
                command,
                due: now,
                interval: FIRST.min(longest),
                longest,
            }
        }))
    }

    /// When the next one is due, and which.
    pub(super) fn next(&self) -> (Instant, &'static str) {
        let [first, rest @ ..] = &self.0;
        let next = rest.iter().fold(
            first,
            |next, poll| {
                if poll.due < next.due { poll } else { next }
            },
        );
        (next.due, next.command)
    }

    /// It was asked for.
    pub(super) fn done(&mut self, command: &str, now: Instant) {
        for poll in self.0.iter_mut().filter(|poll| poll.command == command) {
            poll.due = now + poll.interval;
            poll.interval = (poll.interval * 2).min(poll.longest);
        }
    }

    /// Something has changed that is to be seen at once.
    pub(super) fn hurry(&mut self, command: &str, now: Instant) {
        for poll in self.0.iter_mut().filter(|poll| poll.command == command) {
            poll.due = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_asked_for_ever_more_seldom() {
        let start = Instant::now();
        let mut polls = Polls::new(start);
        let mut asked = Vec::new();
        for _ in 0..200 {
            let (due, command) = polls.next();
            asked.push((due.duration_since(start).as_secs(), command));
            polls.done(command, due);
        }
        let first: Vec<_> = asked.iter().take(COMMANDS.len()).copied().collect();
        assert_eq!(first, COMMANDS.map(|(command, _)| (0, command)));
        let times = |name: &str| -> Vec<u64> {
            let of_it = asked.iter().filter(|(_, command)| *command == name);
            of_it.map(|(time, _)| *time).take(6).collect()
        };
        assert_eq!(times("guest-get-osinfo"), [0, 10, 30, 70, 150, 270]);
        assert_eq!(times(FREEZE_STATUS), [0, 5, 10, 15, 20, 25]);
        polls.hurry("guest-info", start);
        assert_eq!(polls.next(), (start, "guest-info"));
    }
}
