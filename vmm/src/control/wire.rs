//! Messages and their descriptors on the socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Largest message, bytes; a plan with a 64 KiB command line and 31 devices is far below.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// Most descriptors with one message (the kernel's `SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// A message could not be sent or received.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The socket failed.
    #[error("Control socket failed")]
    Socket(#[source] io::Error),
    /// The peer closed the socket.
    #[error("Control socket closed by the peer")]
    Closed,
    /// A message is longer than [`MAX_MESSAGE`], or has more than [`MAX_FDS`] descriptors.
    #[error("Control message of more than {MAX_MESSAGE} bytes or {MAX_FDS} descriptors")]
    TooLong,
    /// The receiver had no room for a message's descriptors.
    #[error("Descriptors of a control message could not be received")]
    LostFds,
    /// A message is not what this version understands.
    #[error("Control message not understood")]
    Format(#[source] serde_json::Error),
}

/// Two ends that messages go between, both close-on-exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one message with descriptors; waits for room.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ControlError> {
    send_with(socket, message, fds, SendFlags::NOSIGNAL)
}

/// The same, but fails with [`io::ErrorKind::WouldBlock`] where there is no room.
pub fn try_send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ControlError> {
    send_with(
        socket,
        message,
        fds,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )
}

fn send_with<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), ControlError> {
    let bytes = serde_json::to_vec(message).map_err(ControlError::Format)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(ControlError::TooLong);
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ControlError::TooLong);
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)
    })
    .map(drop)
    .map_err(failure)
}

/// Waits for a message and tells its length in bytes; 0 at the end.
fn next_len(socket: BorrowedFd<'_>) -> Result<usize, ControlError> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
    rustix::io::retry_on_intr(|| {
        let none = &mut RecvAncillaryBuffer::default();
        rustix::net::recvmsg(socket, &mut [], none, flags)
    })
    .map(|message| message.bytes)
    .map_err(failure)
}

/// A peer that closed its end is told from a socket that does not work.
fn failure(errno: Errno) -> ControlError {
    match errno {
        Errno::CONNRESET | Errno::PIPE => ControlError::Closed,
        errno => ControlError::Socket(errno.into()),
    }
}

/// Receives one message and the descriptors that came with it (close-on-exec).
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> Result<(T, Vec<OwnedFd>), ControlError> {
    // Most messages are small, and pages that were touched once stay.
    let mut bytes = vec![0; next_len(socket)?.min(MAX_MESSAGE)];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket.as_fd(),
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .map_err(failure)?;
    if received.bytes == 0 {
        return Err(ControlError::Closed);
    }
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(ControlError::TooLong);
    }
    // There is room for as many as are ever sent, unless this process may not open as many files.
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ControlError::LostFds);
    }
    let message = serde_json::from_slice(&bytes[..received.bytes]).map_err(ControlError::Format)?;
    Ok((message, fds))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::super::{Call, Command};
    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_message() {
        let (ours, theirs) = pair().expect("socket pair");
        let (mut reader, writer) = io::pipe().expect("pipe");
        let call = Call {
            id: 1,
            command: Command::Stats,
        };
        send(ours.as_fd(), &call, &[]).expect("sent");
        send(ours.as_fd(), &call, &[writer.as_fd()]).expect("sent");
        drop(writer);
        let (first, none) = receive::<Call>(theirs.as_fd()).expect("a message");
        assert_eq!((first, none.len()), (call.clone(), 0));
        let (second, mut fds) = receive::<Call>(theirs.as_fd()).expect("a message");
        assert_eq!((second, fds.len()), (call, 1));
        let mut writer = File::from(fds.remove(0));
        writer.write_all(b"bulk").expect("written");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "bulk");
    }

    #[test]
    fn messages_are_bounded_on_both_sides() {
        let (ours, theirs) = pair().expect("socket pair");
        let long = "x".repeat(MAX_MESSAGE);
        let sent = send(ours.as_fd(), &long, &[]);
        assert!(matches!(sent, Err(ControlError::TooLong)), "{sent:?}");
        let raw = format!("\"{long}\"");
        rustix::net::send(&ours, raw.as_bytes(), SendFlags::NOSIGNAL).expect("sent");
        let received = receive::<String>(theirs.as_fd());
        assert!(
            matches!(received, Err(ControlError::TooLong)),
            "{received:?}"
        );
    }

    #[test]
    fn a_full_socket_does_not_hold_up_who_does_not_want_to_wait() {
        let (ours, _theirs) = pair().expect("socket pair");
        let text = "x".repeat(1000);
        let error = loop {
            if let Err(error) = try_send(ours.as_fd(), &text, &[]) {
                break error;
            }
        };
        let full = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        assert!(
            matches!(&error, ControlError::Socket(error) if full(error)),
            "{error:?}"
        );
    }

    #[test]
    fn the_end_is_told_from_a_failure() {
        let (ours, theirs) = pair().expect("socket pair");
        drop(ours);
        let sent = send(theirs.as_fd(), &"late", &[]);
        assert!(matches!(sent, Err(ControlError::Closed)), "{sent:?}");
        let received = receive::<Call>(theirs.as_fd());
        assert!(
            matches!(received, Err(ControlError::Closed)),
            "{received:?}"
        );
    }
}
