//! What launcher, vm process, boot reader, opener and the processes of a KubeVirt pod read of each other, and the launcher
//! of its clients: one input as each kind of message.

use std::fmt::Debug;
use std::fs::File;
use std::os::fd::AsFd;

use launcher::bootdisk::protocol::{Answer, Order, check};
use launcher::supervise::Outcome;
use launcher::supervise::control::Line;
use launcher::{kubevirt, opener};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vmm::control::{self, Call, Create, Hello, MAX_MESSAGE, Report};

/// Sends the input as a message and does with it what its reader does.
pub fn run(bytes: &[u8]) {
    // As the vm process reads it.
    let call = receive::<Call>(bytes);
    receive::<Hello>(bytes);
    receive::<Create>(bytes);
    // As the launcher reads a client's line.
    if let Some(line) = again::<Line>(bytes)
        && bytes.len() <= MAX_MESSAGE
    {
        assert_eq!(
            call.as_ref(),
            Some(&line.call),
            "a call for the launcher alone"
        );
    }
    receive::<opener::Answer>(bytes);
    receive::<Order>(bytes);
    if let Some(answer) = receive::<Answer>(bytes) {
        is_bootable(&answer);
    }
    assert!(kubevirt::messages_last(bytes));
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

/// Of what the boot reader says a kernel gets nothing that would be two lines of a log, whatever files come with it.
fn is_bootable(answer: &Answer) {
    let sealed = || {
        let file = memfd_create("kernel", MemfdFlags::ALLOW_SEALING).expect("memory");
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&file, seals).expect("sealed");
        File::from(file)
    };
    for count in 0..3 {
        let files: Vec<_> = (0..count).map(|_| sealed()).collect();
        let is_believed = check(answer, &files).is_ok();
        match answer {
            Answer::Booted(booted) if is_believed => {
                assert!(count > 0 && !booted.options.chars().any(char::is_control));
            }
            Answer::Inspected {} => assert_eq!(is_believed, count == 1),
            Answer::Failed { .. } => assert_eq!(is_believed, count == 0),
            Answer::Booted(_) => {}
        }
    }
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
    lasts(&message);
    Some(message)
}

fn again<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let message = serde_json::from_slice(bytes).ok()?;
    lasts(&message);
    Some(message)
}

fn lasts<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T) {
    let again = serde_json::to_vec(message).expect("JSON");
    assert_eq!(
        serde_json::from_slice::<T>(&again).ok().as_ref(),
        Some(message)
    );
}
