//! The host side of the serial console: a terminal, pipe or file, or a unix socket with one client
//! at a time, and an optional log file. Runs on the event loop and never blocks it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::legacy::serial::{ConsoleQueue, SerialConsole};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::SocketFlags;

/// Most bytes written to a terminal or pipe that said it is writable: what a pipe always takes
/// then is `PIPE_BUF`, what a terminal takes is less.
const CHUNK: usize = 256;
/// What the UART's FIFO holds.
const INPUT_CHUNK: usize = 64;

/// A file that output goes to is not made larger than this, bytes: guests write without end.
const FILE_LIMIT: u64 = 16 << 20;

/// What the readers of the last output may take, in all. The launcher waits longer for the vm process's end.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Ctrl-A, the prefix of console commands, as in QEMU.
const ESCAPE: u8 = 0x01;
const ESCAPE_STOP: u8 = b'x';

/// Where the console goes.
#[derive(Default)]
pub struct ConsoleFds {
    /// Terminal, pipe or file to read from.
    pub input: Option<OwnedFd>,
    /// Terminal, pipe or file to write to.
    pub output: Option<OwnedFd>,
    /// Listening unix socket.
    pub listener: Option<OwnedFd>,
    /// Copy of all output.
    pub log: Option<File>,
}

/// What became of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputResult {
    /// Read; more may come.
    Open,
    /// The other side is gone or the input is at its end.
    Closed,
    /// The user asked to stop the VM.
    Stop,
}

/// What became of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputResult {
    /// All is written.
    Done,
    /// Some is left for when [`Console::output`] is writable.
    Wait,
    /// The reader is gone for good: [`Console::close_output`] is due.
    Gone,
}

/// The socket's client, twice, so that input and output can be polled apart.
struct Client {
    input: OwnedFd,
    output: OwnedFd,
}

/// The console between the event loop and the UART.
pub struct Console {
    queue: Arc<ConsoleQueue>,
    fds: ConsoleFds,
    client: Option<Client>,
    /// Output taken from the queue and not yet written to `output` or `client`.
    pending: Vec<u8>,
    /// Input comes from a terminal, so the escape key works.
    interactive: bool,
    escaped: bool,
    dropped_before: u64,
    /// Output goes to a file.
    to_file: bool,
    /// The file took no more once, which was said.
    file_was_full: bool,
    /// The same of the log.
    log_was_full: bool,
}

impl Console {
    /// Connects the queue with the descriptors.
    pub fn new(queue: Arc<ConsoleQueue>, fds: ConsoleFds) -> Self {
        let interactive = fds.input.as_ref().is_some_and(rustix::termios::isatty);
        if let Some(listener) = &fds.listener {
            // The socket is this process's alone; if this fails, accepting just may wait.
            let _ = rustix::io::ioctl_fionbio(listener, true);
        }
        let to_file = fds
            .output
            .as_ref()
            .is_some_and(|output| file_size(output.as_fd()).is_some());
        Self {
            queue,
            fds,
            client: None,
            pending: Vec::with_capacity(CHUNK),
            interactive,
            escaped: false,
            dropped_before: 0,
            to_file,
            file_was_full: false,
            log_was_full: false,
        }
    }

    /// The queue's wake-up.
    pub fn queue(&self) -> &Arc<ConsoleQueue> {
        &self.queue
    }

    /// The listening socket, if any.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.fds.listener.as_ref().map(AsFd::as_fd)
    }

    /// Where input comes from now: the socket's client or the terminal.
    pub fn input(&self) -> Option<BorrowedFd<'_>> {
        let client = self.client.as_ref().map(|client| &client.input);
        client.or(self.fds.input.as_ref()).map(AsFd::as_fd)
    }

    /// Where output goes now.
    pub fn output(&self) -> Option<BorrowedFd<'_>> {
        let client = self.client.as_ref().map(|client| &client.output);
        client.or(self.fds.output.as_ref()).map(AsFd::as_fd)
    }

    /// Accepts a client if there is none; true if there is a new one.
    pub fn accept(&mut self) -> bool {
        let Some(listener) = &self.fds.listener else {
            return false;
        };
        if self.client.is_some() {
            return false;
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        self.client = rustix::net::accept_with(listener, flags)
            .ok()
            .and_then(|input| {
                let output = input.try_clone().ok()?;
                Some(Client { input, output })
            });
        self.client.is_some()
    }

    /// A client is connected to the socket.
    pub fn has_client(&self) -> bool {
        self.client.is_some()
    }

    /// Ends the connection of the client, or the terminal's input.
    pub fn close_input(&mut self) {
        if self.client.take().is_some() {
            self.pending.clear();
        } else {
            self.fds.input = None;
        }
    }

    /// Moves input to the UART as far as it has room. Call when the input is readable.
    pub fn read_input(&mut self, serial: &SerialConsole) -> InputResult {
        let room = serial.input_room().min(INPUT_CHUNK);
        let mut buffer = [0; INPUT_CHUNK];
        let Some(input) = self.input() else {
            return InputResult::Closed;
        };
        if room == 0 {
            return InputResult::Open;
        }
        match rustix::io::read(input, &mut buffer[..room]) {
            Ok(0) => InputResult::Closed,
            Ok(count) => {
                let mut keys = [0; INPUT_CHUNK];
                let (len, stop) = self.unescape(&buffer[..count], &mut keys);
                serial.input(&keys[..len]);
                if stop {
                    InputResult::Stop
                } else {
                    InputResult::Open
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => InputResult::Open,
            Err(_) => InputResult::Closed,
        }
    }

    /// Takes console commands out of what a terminal's user typed: the number of bytes left in
    /// `keys`, and whether to stop.
    fn unescape(&mut self, typed: &[u8], keys: &mut [u8; INPUT_CHUNK]) -> (usize, bool) {
        let mut len = 0;
        for byte in typed {
            if self.interactive && self.client.is_none() {
                if self.escaped {
                    self.escaped = false;
                    if *byte == ESCAPE_STOP {
                        return (len, true);
                    }
                } else if *byte == ESCAPE {
                    self.escaped = true;
                    continue;
                }
            }
            keys[len] = *byte;
            len += 1;
        }
        (len, false)
    }

    /// Ends the connection of the client, or gives up the terminal's output.
    pub fn close_output(&mut self) {
        self.pending.clear();
        if self.client.take().is_none() {
            self.fds.output = None;
        }
    }

    /// Writes what can be written without blocking.
    pub fn write_output(&mut self) -> OutputResult {
        loop {
            if self.pending.is_empty() && !self.refill() {
                return OutputResult::Done;
            }
            let Some(output) = self.output() else {
                self.pending.clear();
                continue;
            };
            if !is_ready(output, PollFlags::OUT, Duration::ZERO) {
                return OutputResult::Wait;
            }
            let written = match self.to_file {
                true => write_to_file(output, &self.pending),
                false => rustix::io::write(output, &self.pending),
            };
            match written {
                Ok(count) => {
                    self.pending.drain(..count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return OutputResult::Wait,
                Err(errno) if self.to_file => self.lose_output(errno),
                Err(_) => return OutputResult::Gone,
            }
        }
    }

    /// The file takes no more for now; somebody may empty it.
    fn lose_output(&mut self, errno: Errno) {
        self.pending.clear();
        if !self.file_was_full {
            self.file_was_full = true;
            tracing::warn!(
                limit = FILE_LIMIT,
                error = %errno,
                "the console's file takes no more; output is lost until it is emptied"
            );
        }
    }

    /// Takes the next chunk from the queue and logs it; false if there is none.
    fn refill(&mut self) -> bool {
        self.pending.resize(CHUNK, 0);
        let count = self.queue.take_output(&mut self.pending);
        self.pending.truncate(count);
        if count > 0 {
            self.log();
        }
        let dropped = self.queue.dropped();
        if dropped != self.dropped_before && self.dropped_before == 0 {
            tracing::warn!(dropped, "console reader is slow; output is lost");
            self.dropped_before = dropped;
        }
        count > 0
    }

    /// Copies the chunk to the log, which may be emptied by somebody when it is full.
    fn log(&mut self) {
        let Some(log) = &self.fds.log else { return };
        match write_to_file(log.as_fd(), &self.pending) {
            Ok(_) => {}
            Err(Errno::FBIG) if self.log_was_full => {}
            Err(Errno::FBIG) => {
                self.log_was_full = true;
                tracing::warn!(
                    limit = FILE_LIMIT,
                    "the console's log takes no more; output is not logged until it is emptied"
                );
            }
            Err(error) => {
                tracing::warn!(%error, "console log cannot be written; no more is logged");
                self.fds.log = None;
            }
        }
    }

    /// Writes out what is left, at the end; a reader that takes it slowly, or not at all, loses the rest.
    pub fn drain(&mut self) {
        let end = Instant::now() + DRAIN_TIME;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match (self.write_output(), self.output()) {
                (OutputResult::Gone, _) => self.close_output(),
                (OutputResult::Wait, Some(output)) if !left.is_zero() => {
                    is_ready(output, PollFlags::OUT, left);
                }
                (OutputResult::Wait, _) => {
                    tracing::warn!("console reader is slow; the last output is lost");
                    return;
                }
                (OutputResult::Done, _) => return,
            }
        }
    }
}

/// Bytes in a regular file; `None` if it is something else.
fn file_size(fd: BorrowedFd<'_>) -> Option<u64> {
    let stat = rustix::fs::fstat(fd).ok()?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    is_file.then_some(stat.st_size.unsigned_abs())
}

/// Writes as the kernel does beyond a limit of the process, `EFBIG` included.
fn write_to_file(fd: BorrowedFd<'_>, bytes: &[u8]) -> rustix::io::Result<usize> {
    let room = FILE_LIMIT.saturating_sub(file_size(fd).unwrap_or(0));
    let len = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
    if len == 0 {
        return Err(Errno::FBIG);
    }
    rustix::io::write(fd, &bytes[..len])
}

fn is_ready(fd: BorrowedFd<'_>, flags: PollFlags, timeout: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: timeout.as_secs().cast_signed(),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // Errors and hang-ups count as ready: the write that follows tells.
    poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use devices::bus::BusDevice;
    use devices::virtio::testing::FakeIrq;

    use super::*;

    fn fixture(fds: ConsoleFds) -> (Console, SerialConsole) {
        let queue = Arc::new(ConsoleQueue::new().expect("eventfd"));
        let serial = SerialConsole::new(&queue, Arc::new(FakeIrq::default()));
        (Console::new(queue, fds), serial)
    }

    #[test]
    fn a_reader_that_does_not_read_never_blocks_and_gets_the_rest_later() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        ours.set_nonblocking(true).expect("non-blocking");
        let fds = ConsoleFds {
            output: Some(ours.into()),
            ..Default::default()
        };
        let (mut console, serial) = fixture(fds);
        let mut written = 0_usize;
        while console.write_output() == OutputResult::Done {
            for _ in 0..CHUNK {
                serial.write(0, b"a");
            }
            written += CHUNK;
            assert!(written < 8 << 20, "the socket buffer must fill");
        }
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).expect("read");
            all.len()
        });
        console.drain();
        drop(console);
        assert_eq!(reader.join().expect("reader"), written);
    }

    /// The end of a machine does not wait for who never reads.
    #[test]
    fn a_reader_that_never_reads_loses_the_rest() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        ours.set_nonblocking(true).expect("non-blocking");
        let fds = ConsoleFds {
            output: Some(ours.into()),
            ..Default::default()
        };
        let (mut console, serial) = fixture(fds);
        while console.write_output() == OutputResult::Done {
            (0..CHUNK).for_each(|_| serial.write(0, b"a"));
        }
        console.drain();
        assert_eq!(
            console.write_output(),
            OutputResult::Wait,
            "nobody has read"
        );
        drop(theirs);
    }

    #[test]
    fn escape_stops_only_on_a_terminal() {
        let (mut console, _) = fixture(ConsoleFds::default());
        let mut keys = [0; INPUT_CHUNK];
        assert_eq!(console.unescape(b"\x01x", &mut keys), (2, false));
        console.interactive = true;
        assert_eq!(console.unescape(b"a\x01", &mut keys), (1, false));
        assert_eq!(console.unescape(b"\x01b", &mut keys), (2, false));
        assert_eq!(&keys[..2], b"\x01b");
        assert_eq!(console.unescape(b"c\x01x", &mut keys), (1, true));
    }

    #[test]
    fn a_file_has_a_limit_and_is_used_again_when_it_is_emptied() {
        let file = tempfile::NamedTempFile::new().expect("file");
        file.as_file().set_len(FILE_LIMIT - 100).expect("sparse");
        let mut options = std::fs::OpenOptions::new();
        let output = options.append(true).open(file.path()).expect("open");
        let (mut console, serial) = fixture(ConsoleFds {
            output: Some(output.into()),
            ..Default::default()
        });
        let size = || file.as_file().metadata().expect("metadata").len();
        let mut write = |count: usize| {
            (0..count).for_each(|_| serial.write(0, b"a"));
            assert_eq!(console.write_output(), OutputResult::Done);
        };
        for _ in 0..3 {
            write(70);
        }
        assert_eq!(size(), FILE_LIMIT);
        write(70);
        assert_eq!(size(), FILE_LIMIT);
        file.as_file().set_len(0).expect("emptied");
        write(70);
        assert_eq!(size(), 70);
    }

    #[test]
    fn the_log_has_everything_even_without_a_reader() {
        let log = tempfile::NamedTempFile::new().expect("file");
        let fds = ConsoleFds {
            log: Some(log.reopen().expect("open")),
            ..Default::default()
        };
        let (mut console, serial) = fixture(fds);
        for byte in b"hello" {
            serial.write(0, &[*byte]);
        }
        assert_eq!(console.write_output(), OutputResult::Done);
        assert_eq!(std::fs::read(log.path()).expect("read"), b"hello");
    }
}
