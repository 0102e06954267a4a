//! What the launcher hears from a vm process that its guest has taken over, and from its clients.

use launcher::supervise::Outcome;
use launcher::supervise::control::Request;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use std::os::fd::AsFd;
use vmm::control::{self, Command, Event, MAX_MESSAGE};

/// Sends the input as a message and does with it what the launcher does.
pub fn run(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let json = serde_json::to_vec(&request).expect("JSON");
        assert_eq!(serde_json::from_slice::<Request>(&json).ok(), Some(request));
    }
    let Some(event) = receive(bytes) else { return };
    let json = serde_json::to_vec(&event).expect("JSON");
    assert_eq!(
        serde_json::from_slice::<Event>(&json).ok(),
        Some(event.clone())
    );
    let Some(outcome) = outcome(event) else {
        return;
    };
    let escape = outcome
        .to_string()
        .chars()
        .find(|&c| c.is_control() && c != '\n');
    assert_eq!(escape, None, "{outcome:?}");
    let _ = outcome.exit();
}

fn receive(bytes: &[u8]) -> Option<Event> {
    let (launcher, vm) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("socket pair");
    let message = &bytes[..bytes.len().min(MAX_MESSAGE)];
    rustix::net::send(&vm, message, SendFlags::NOSIGNAL).expect("room for a message");
    // The other direction has the same reader.
    let _ = serde_json::from_slice::<Command>(bytes);
    let received = control::receive::<Event>(launcher.as_fd());
    received.ok().map(|(event, fds)| {
        assert!(fds.is_empty());
        event
    })
}

/// As the launcher's supervisor takes the last event of a run.
fn outcome(event: Event) -> Option<Outcome> {
    Some(match event {
        Event::GuestCrashed(report) => Outcome::Crashed(report),
        Event::Refused { causes } => Outcome::Refused { causes },
        Event::InternalError { causes } => Outcome::Failed { causes },
        Event::SeccompViolation { role, syscall } => Outcome::Violation { role, syscall },
        _ => return None,
    })
}
