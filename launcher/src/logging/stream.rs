//! Standard error as the log writes to it: never waited for, never fatal. What cannot be written is counted,
//! and the count is written when writing works again.
//!
//! A pipe or a terminal is opened anew, which gives this process (and its fork) an open file description of its
//! own that may be made non-blocking; the one it inherited belongs to others, too. Where that is refused, as for a
//! container's user who does not own the pipe, and for sockets, which cannot be opened, each write says that it does
//! not wait ([`at_once`]). Files take everything.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::at_once;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde_json::json;
use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use super::LogFormat;
use crate::streams;

/// Most bytes that a pipe takes at once, whole or not at all, if it takes any (pipe(7)).
const PIPE_BUF: usize = 4096;

/// What has not been written, messages.
static LOST: AtomicU64 = AtomicU64::new(0);

static STREAM: OnceLock<Stream> = OnceLock::new();

/// How standard error is written to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stream {
    /// It is shared with others, who let writes wait.
    is_shared: bool,
    json: bool,
}

impl Stream {
    /// Makes standard error fit for what follows.
    pub(super) fn open(format: LogFormat) -> Self {
        let stream = Self {
            is_shared: !at_once::is_file(io::stderr().as_fd()) && reopen().is_err(),
            json: format == LogFormat::Json,
        };
        *STREAM.get_or_init(|| stream)
    }

    /// Writes a message, and how many were lost before it.
    fn put(self, message: &[u8]) {
        if !self.tell_lost() || !self.try_put(message) {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes how many messages were lost; whether nothing is left to say of that.
    fn tell_lost(self) -> bool {
        let lost = LOST.swap(0, Ordering::Relaxed);
        let is_told = lost == 0 || self.try_put(self.notice(lost).as_bytes());
        if !is_told {
            LOST.fetch_add(lost, Ordering::Relaxed);
        }
        is_told
    }

    fn notice(self, lost: u64) -> String {
        let text = format!("{lost} messages are lost: nobody read the log");
        self.paragraph(Level::WARN, &text)
    }

    /// A paragraph for people as the log has it.
    fn paragraph(self, level: Level, text: &str) -> String {
        match self.json {
            true => {
                let level = level.as_str();
                json!({"level": level, "fields": {"message": text}}).to_string() + "\n"
            }
            false => format!("podvisor: {text}\n"),
        }
    }

    fn try_put(self, mut rest: &[u8]) -> bool {
        let stderr = io::stderr();
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(PIPE_BUF)];
            let written = match self.is_shared {
                true => at_once::write(stderr.as_fd(), chunk),
                false => rustix::io::write(&stderr, chunk),
            };
            match written {
                Ok(0) => return false,
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// A writer that takes each message whole.
impl Write for Stream {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        self.put(message);
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Stream {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

/// Writes a paragraph of this severity, as the log does.
pub(crate) fn paragraph(level: Level, text: &str) {
    let stream = STREAM.get().copied().unwrap_or_default();
    stream.put(stream.paragraph(level, text).as_bytes());
}

/// How many messages were lost is written where that is possible now: nothing else may be left to say.
pub fn tell_lost() {
    STREAM.get().copied().unwrap_or_default().tell_lost();
}

/// Whether there are lost messages to tell of.
pub(crate) fn has_lost() -> bool {
    LOST.load(Ordering::Relaxed) > 0
}

/// Puts an open file description of our own in the place of the one that was inherited.
fn reopen() -> rustix::io::Result<()> {
    let own = streams::own(io::stderr().as_fd(), OFlags::WRONLY)?;
    rustix::stdio::dup2_stderr(&own)
}
