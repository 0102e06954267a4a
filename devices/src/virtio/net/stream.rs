//! Frames over a stream socket, each behind its length as a 32-bit number in network order: what
//! `passt` speaks, and QEMU's `-netdev stream`. There is no virtio header and no offload.
//!
//! A frame may arrive and leave in parts. What is there of one is kept here, not in a handler, so
//! that the stream stays in step when the driver, or the machine, is reset. If the peer goes away or
//! gets out of step, the stream is lost for good and the guest sees its link go down.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::features::{ETHERNET, MAX_PACKET};
use crate::tap::HEADER_SIZE;

/// Bytes of a frame's length.
pub(super) const PREFIX: usize = 4;

/// Longest frame, bytes.
const MAX_FRAME: usize = MAX_PACKET - HEADER_SIZE;

/// Room for the longest frame and more, so that a read takes many at once.
const INCOMING: usize = 256 << 10;

/// The peer closed the socket or sent what is no frame.
#[derive(Debug)]
pub(super) struct Lost;

/// One end of a connected stream socket that does not block.
#[derive(Debug)]
pub struct Stream {
    socket: File,
    /// Here unless a handler has it.
    state: Mutex<Option<Transit>>,
    lost: AtomicBool,
}

/// What is there of frames on their way.
#[derive(Debug)]
pub(super) struct Transit {
    pub(super) incoming: Incoming,
    pub(super) unsent: Unsent,
}

impl Stream {
    /// Uses `socket`, which the caller has connected and made non-blocking.
    pub fn new(socket: File) -> Self {
        Self {
            socket,
            state: Mutex::new(Some(Transit {
                incoming: Incoming::default(),
                unsent: Unsent::default(),
            })),
            lost: AtomicBool::new(false),
        }
    }

    /// The socket.
    pub(super) fn socket(&self) -> &File {
        &self.socket
    }

    /// Whether the peer is gone.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Notes that the peer is gone; false if that was known.
    pub(super) fn lose(&self) -> bool {
        !self.lost.swap(true, Ordering::Relaxed)
    }

    /// Takes the state for a handler, once until it is given back.
    pub(super) fn take(&self) -> Option<Transit> {
        self.lock().take()
    }

    pub(super) fn give_back(&self, state: Transit) {
        *self.lock() = Some(state);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Transit>> {
        // It is replaced as a whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes received and not yet taken by the guest.
#[derive(Debug)]
pub(super) struct Incoming {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self {
            buffer: vec![0; INCOMING].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }
}

impl Incoming {
    /// The next frame, which stays the next one until [`Incoming::consume`]; `None` if it is not
    /// there yet, and the socket is empty.
    pub(super) fn next(&mut self, socket: &File) -> Result<Option<&[u8]>, Lost> {
        let mut drained = false;
        loop {
            if let Some(len) = self.frame_len()? {
                let at = self.start + PREFIX;
                return Ok(Some(&self.buffer[at..at + len]));
            }
            if drained {
                return Ok(None);
            }
            drained = !self.fill(socket)?;
        }
    }

    /// Throws the frame away that [`Incoming::next`] has returned.
    pub(super) fn consume(&mut self) {
        if let Ok(Some(len)) = self.frame_len() {
            self.start += PREFIX + len;
        }
    }

    /// Length of the frame at the front, if all of it is there.
    fn frame_len(&self) -> Result<Option<usize>, Lost> {
        let there = &self.buffer[self.start..self.end];
        let Some((prefix, rest)) = there.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*prefix) as usize;
        if !(ETHERNET..=MAX_FRAME).contains(&len) {
            return Err(Lost);
        }
        Ok((len <= rest.len()).then_some(len))
    }

    /// Reads once; false if there was nothing. The buffer always has room: a frame that is not
    /// complete is shorter.
    fn fill(&mut self, mut socket: &File) -> Result<bool, Lost> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        match socket.read(&mut self.buffer[self.end..]) {
            Ok(0) => Err(Lost),
            Ok(len) => {
                self.end += len;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(_) => Err(Lost),
        }
    }
}

/// The rest of a frame that the socket did not take as a whole.
#[derive(Debug)]
pub(super) struct Unsent {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Unsent {
    fn default() -> Self {
        Self {
            buffer: vec![0; PREFIX + MAX_FRAME].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }
}

impl Unsent {
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Keeps the rest of a frame, for which `fill` says its length. Only while nothing is kept.
    pub(super) fn keep(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) {
        self.start = 0;
        self.end = fill(&mut self.buffer).min(self.buffer.len());
    }

    /// Sends what is kept; true if nothing is left.
    pub(super) fn flush(&mut self, mut socket: &File) -> Result<bool, Lost> {
        while !self.is_empty() {
            match socket.write(&self.buffer[self.start..self.end]) {
                Ok(len) => self.start += len,
                Err(error) => return blocked(&error).map(|()| false),
            }
        }
        Ok(true)
    }
}

/// Whether a failed write only has to wait.
pub(super) fn blocked(error: &io::Error) -> Result<(), Lost> {
    match error.kind() {
        ErrorKind::WouldBlock => Ok(()),
        _ => Err(Lost),
    }
}
