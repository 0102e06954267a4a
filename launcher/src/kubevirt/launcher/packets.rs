//! Messages of another process of the pod, when there are any.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as Socket;

use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;
use vmm::control::{self, ControlError};

/// The reading side of a packet socket; the runtime asks no more of it than of a stream's.
pub(super) struct Packets(UnixStream);

/// Waits until there is something to read from a socket, or its end.
pub(super) async fn readable(socket: OwnedFd) -> io::Result<()> {
    Packets::new(socket)?.0.readable().await
}

impl Packets {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(socket);
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket).map(Self)
    }

    /// The next message and its descriptors, or the end.
    pub(super) async fn next<T: DeserializeOwned>(
        &self,
    ) -> Result<(T, Vec<OwnedFd>), ControlError> {
        loop {
            self.0.readable().await.map_err(ControlError::Socket)?;
            let receive = || match control::receive(self.0.as_fd()) {
                Err(ControlError::Socket(error)) if error.kind() == ErrorKind::WouldBlock => {
                    Err(error)
                }
                received => Ok(received),
            };
            match self.0.try_io(Interest::READABLE, receive) {
                Ok(received) => return received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(ControlError::Socket(error)),
            }
        }
    }
}
