//! One connection to the control socket: bytes and descriptors to calls, lines back.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use serde::Serialize;
use vmm::control::{Refusal, Reply, Verdict};

use super::{Asker, ClientCall, Line};

/// Longest line of a client.
const MAX_LINE: usize = 4096;

/// Most descriptors with one call.
const MAX_DESCRIPTORS: usize = 16;

/// A connected client.
#[derive(Debug)]
pub(super) struct Client {
    number: u64,
    stream: UnixStream,
    /// A line that has not ended.
    input: Vec<u8>,
    /// Descriptors that came with it.
    descriptors: Vec<OwnedFd>,
    gone: bool,
}

impl Client {
    /// A client on a socket that does not block.
    pub(super) fn new(number: u64, stream: UnixStream) -> Self {
        Self {
            number,
            stream,
            input: Vec::new(),
            descriptors: Vec::new(),
            gone: false,
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Reads what is there and adds the calls of it.
    pub(super) fn read(&mut self, calls: &mut Vec<ClientCall>) {
        let mut buffer = [0; 1024];
        match receive(&self.stream, &mut buffer) {
            Ok((0, _)) => self.gone = true,
            Ok((len, descriptors)) => self.take(&buffer[..len], descriptors, calls),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.gone = true,
        }
    }

    /// Descriptors belong to the line of the last byte that came with them: the kernel does not read
    /// beyond the message that has them, and hands them out with its first byte.
    fn take(&mut self, bytes: &[u8], descriptors: Vec<OwnedFd>, calls: &mut Vec<ClientCall>) {
        self.input.extend_from_slice(bytes);
        let mut descriptors = Some(descriptors);
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            if self.input.is_empty() {
                self.descriptors
                    .extend(descriptors.take().into_iter().flatten());
            }
            let descriptors = std::mem::take(&mut self.descriptors);
            match serde_json::from_slice::<Line>(&line) {
                Ok(Line { open, call }) => {
                    let client = self.number;
                    calls.push(ClientCall {
                        asker: Asker {
                            client,
                            id: call.id,
                        },
                        command: call.command,
                        open,
                        descriptors,
                    });
                }
                Err(error) => self.refuse(&error),
            }
        }
        self.descriptors.extend(descriptors.into_iter().flatten());
        if self.input.len() > MAX_LINE || self.descriptors.len() > MAX_DESCRIPTORS {
            self.gone = true;
        }
    }

    /// What is no call has no number either.
    fn refuse(&mut self, error: &serde_json::Error) {
        let message = error.to_string();
        self.write(&Reply {
            id: 0,
            verdict: Verdict::Error(Refusal::NotUnderstood { message }),
        });
    }

    /// Sends a line.
    pub(super) fn write(&mut self, message: &impl Serialize) {
        let Ok(mut line) = serde_json::to_vec(message) else {
            return;
        };
        line.push(b'\n');
        // A partial line would garble the stream, so a client that lags that far behind is dropped.
        if self.stream.write(&line).ok() != Some(line.len()) {
            self.gone = true;
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Reads bytes and the descriptors that came with them; more of these than there is room for end the
/// connection.
fn receive(stream: &UnixStream, buffer: &mut [u8]) -> rustix::io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(buffer)],
        &mut ancillary,
        flags,
    )?;
    let descriptors: Vec<_> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    // The space may be rounded up.
    let cut = received.flags.contains(ReturnFlags::CTRUNC);
    match cut || descriptors.len() > MAX_DESCRIPTORS {
        true => Err(Errno::MSGSIZE),
        false => Ok((received.bytes, descriptors)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice, Read};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use vmm::control::Command;

    use super::*;
    use crate::opener::ToOpen;

    fn pair() -> (UnixStream, Client) {
        let (theirs, ours) = UnixStream::pair().expect("sockets");
        (theirs, Client::new(5, ours))
    }

    fn send(stream: &UnixStream, text: &str, fds: &[BorrowedFd<'_>]) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let text = [IoSlice::new(text.as_bytes())];
        let sent = rustix::net::sendmsg(stream, &text, &mut ancillary, SendFlags::empty());
        sent.expect("sent");
    }

    /// Numbers of the calls, and how many descriptors each has.
    fn read_all(client: &mut Client) -> Vec<(u64, usize)> {
        let mut calls = Vec::new();
        for _ in 0..10 {
            client.read(&mut calls);
        }
        let number = |call: &ClientCall| {
            assert_eq!(call.command, Command::Stats);
            (call.asker.id, call.descriptors.len())
        };
        calls.iter().map(number).collect()
    }

    fn line(id: u64) -> String {
        format!("{{\"id\":{id},\"command\":\"stats\"}}\n")
    }

    #[test]
    fn descriptors_stay_with_their_line() {
        let (stream, mut client) = pair();
        let fd = io::stderr();
        let fd = fd.as_fd();
        send(&stream, &line(1), &[]);
        send(&stream, &line(2), &[fd, fd]);
        send(&stream, &line(3), &[]);
        // Longer than is read at once.
        send(&stream, &(" ".repeat(3000) + &line(4)), &[fd]);
        send(&stream, &line(5), &[]);
        // A line in two messages.
        send(&stream, &line(6)[..5], &[fd]);
        assert_eq!(
            read_all(&mut client),
            [(1, 0), (2, 2), (3, 0), (4, 1), (5, 0)]
        );
        send(&stream, &line(6)[5..], &[]);
        assert_eq!(read_all(&mut client), [(6, 1)]);
        assert!(!client.is_gone());
    }

    #[test]
    fn what_is_no_call_is_answered_and_the_next_is_read() {
        let (mut stream, mut client) = pair();
        send(&stream, "fly\n", &[]);
        send(&stream, &line(2), &[]);
        assert_eq!(read_all(&mut client), [(2, 0)]);
        let mut text = [0; 200];
        let len = stream.read(&mut text).expect("an answer");
        let reply: Reply = serde_json::from_slice(&text[..len]).expect("a reply");
        let refused = matches!(reply.verdict, Verdict::Error(Refusal::NotUnderstood { .. }));
        assert!(refused && reply.id == 0, "{reply:?}");
    }

    #[test]
    fn a_line_may_name_a_file() {
        let (stream, mut client) = pair();
        let file = r#""open":{"path":"/volumes/a/disk.img","readOnly":true}"#;
        send(
            &stream,
            &format!("{{\"id\":4,\"command\":\"stats\",{file}}}\n"),
            &[],
        );
        let mut calls = Vec::new();
        client.read(&mut calls);
        let call = calls.pop().expect("a call");
        let Some(ToOpen::File(open)) = call.open else {
            panic!("{call:?}");
        };
        assert_eq!((call.asker.id, open.read_only), (4, true));
        assert_eq!(open.path, std::path::Path::new("/volumes/a/disk.img"));
        for wrong in [r#""open":{}"#, r#""open":{"path":"/a","make":true}"#] {
            send(
                &stream,
                &format!("{{\"command\":\"stats\",{wrong}}}\n"),
                &[],
            );
            client.read(&mut calls);
            assert!(calls.is_empty(), "{wrong}");
        }
    }

    #[test]
    fn lines_and_descriptors_are_bounded() {
        let (stream, mut client) = pair();
        send(&stream, &"x".repeat(2 * MAX_LINE), &[]);
        read_all(&mut client);
        assert!(client.is_gone());
        let (stream, mut client) = pair();
        let fd = io::stderr();
        send(&stream, &line(1), &[fd.as_fd(); MAX_DESCRIPTORS + 1]);
        assert_eq!(read_all(&mut client), []);
        assert!(client.is_gone());
    }
}
