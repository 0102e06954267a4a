//! The debugger's connection: a stream that never blocks its thread for long.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gdbstub::conn::Connection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A debugger that takes nothing for so long is no debugger, seconds.
const PATIENCE: i64 = 10;

/// Bytes that are sent before a packet is whole.
const MOST: usize = 64 * 1024;

/// One client.
pub(super) struct Link {
    stream: File,
    /// What came, and how much of it was taken.
    input: Box<[u8; 4096]>,
    taken: usize,
    filled: usize,
    output: Vec<u8>,
}

impl Link {
    /// `stream` does not block.
    pub(super) fn new(stream: OwnedFd) -> Self {
        Self {
            stream: stream.into(),
            input: Box::new([0; 4096]),
            taken: 0,
            filled: 0,
            output: Vec::new(),
        }
    }

    /// The next byte, if it is there already.
    pub(super) fn next(&mut self) -> io::Result<Option<u8>> {
        if self.taken == self.filled {
            self.taken = 0;
            self.filled = match self.stream.read(&mut *self.input) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(filled) => filled,
                Err(error) if is_later(&error) => 0,
                Err(error) => return Err(error),
            };
        }
        let byte = self.input[..self.filled].get(self.taken).copied();
        self.taken += usize::from(byte.is_some());
        Ok(byte)
    }

    fn send(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.output.len() {
            match self.stream.write(&self.output[sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(bytes) => sent += bytes,
                Err(error) if is_later(&error) => self.wait_to_send()?,
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        Ok(())
    }

    fn wait_to_send(&self) -> io::Result<()> {
        let patience = Timespec {
            tv_sec: PATIENCE,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
        match poll(&mut fds, Some(&patience)) {
            Ok(0) => Err(ErrorKind::TimedOut.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connection for Link {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.output.push(byte);
        match self.output.len() {
            MOST.. => self.send(),
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
