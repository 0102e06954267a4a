//! What launcher and vm process read of each other, and the launcher of its clients: one input as each
//! kind of message.

use std::fmt::Debug;
use std::os::fd::AsFd;

use launcher::supervise::Outcome;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vmm::control::{self, Call, Create, Hello, MAX_MESSAGE, Report};

/// Sends the input as a message and does with it what its reader does.
pub fn run(bytes: &[u8]) {
    // As the vm process reads it; a client's line is a call, too.
    let call = receive::<Call>(bytes);
    let line = serde_json::from_slice::<Call>(bytes).ok();
    if bytes.len() <= MAX_MESSAGE {
        assert_eq!(call, line);
    }
    receive::<Hello>(bytes);
    receive::<Create>(bytes);
    // As the launcher does.
    let Some(Report::Notice(notice)) = receive(bytes) else {
        return;
    };
    let Some(outcome) = Outcome::of_last(notice.event) else {
        return;
    };
    let escape = outcome
        .to_string()
        .chars()
        .find(|&c| c.is_control() && c != '\n');
    assert_eq!(escape, None, "{outcome:?}");
    let _ = outcome.exit();
}

/// The message, which is the same after another journey.
fn receive<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("socket pair");
    rustix::net::send(&theirs, bytes, SendFlags::NOSIGNAL).ok()?;
    let (message, fds) = control::receive::<T>(ours.as_fd()).ok()?;
    assert!(fds.is_empty());
    let again = serde_json::to_vec(&message).expect("JSON");
    assert_eq!(
        serde_json::from_slice::<T>(&again).ok().as_ref(),
        Some(&message)
    );
    Some(message)
}
