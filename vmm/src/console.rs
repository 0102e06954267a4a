//! The serial console: what is between the UART and the host's side, and the keys that are podvisor's. Runs on the
//! event loop and never blocks it.

mod stages;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::character::{Character, Read, Written};
use devices::legacy::serial::{ConsoleQueue, SerialConsole};

use self::stages::Stages;

/// Output taken from the queue at a time, bytes.
const CHUNK: usize = 256;
/// Chunks written before something else has its turn: guests write without end.
const BURST: usize = 64;
/// What the UART's FIFO holds.
const INPUT_CHUNK: usize = 64;

/// What the readers of the last output may take, in all. The launcher waits longer for the vm process's end.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Ctrl-A, the prefix of console commands, as in QEMU.
const ESCAPE: u8 = 0x01;
const ESCAPE_STOP: u8 = b'x';

/// What became of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OutputResult {
    /// All is written.
    Done,
    /// There is more.
    More,
    /// Some is left for when the other side takes more.
    Full,
}

/// The console between the event loop and the UART.
pub struct Console {
    queue: Arc<ConsoleQueue>,
    side: Character,
    /// Output taken from the queue and not yet written.
    pending: Vec<u8>,
    /// Input comes from a terminal, so the escape key works.
    interactive: bool,
    escaped: bool,
    /// That output was lost is said once.
    has_lost: bool,
    /// How far the guest has come, where somebody asked.
    stages: Option<Stages>,
    /// It has come further.
    came_further: bool,
}

impl Console {
    /// Connects the queue with the host's side.
    pub fn new(queue: Arc<ConsoleQueue>, side: Character) -> Self {
        Self {
            queue,
            interactive: side.is_terminal(),
            side,
            pending: Vec::with_capacity(CHUNK),
            escaped: false,
            has_lost: false,
            stages: None,
            came_further: false,
        }
    }

    /// Marks the steps that the guest's output tells of.
    #[must_use]
    pub fn marking(mut self) -> Self {
        self.stages = Some(Stages::new());
        self
    }

    /// Whether there are new marks.
    pub fn came_further(&mut self) -> bool {
        std::mem::take(&mut self.came_further)
    }

    /// The queue, whose event says that output waits or that there is room for input.
    pub fn queue(&self) -> &Arc<ConsoleQueue> {
        &self.queue
    }

    /// To be watched for edges: the other side came, went, wrote or took something.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.side.events()
    }

    /// Does what can be done without waiting, whatever has happened; true if the user asked to stop the VM.
    pub fn work(&mut self, serial: &SerialConsole) -> bool {
        self.side.look();
        let stop = self.read_input(serial);
        if self.write_output() == OutputResult::More {
            self.queue.wake();
        }
        // Who waits while another is there has his turn when that one is gone.
        self.side.look();
        stop
    }

    /// Moves input to the UART as far as it has room; true if the user asked to stop the VM.
    fn read_input(&mut self, serial: &SerialConsole) -> bool {
        let mut buffer = [0; INPUT_CHUNK];
        loop {
            let room = serial.input_room().min(INPUT_CHUNK);
            if room == 0 {
                return false;
            }
            let Read::Bytes(count) = self.side.read(&mut buffer[..room]) else {
                return false;
            };
            let mut keys = [0; INPUT_CHUNK];
            let (len, stop) = self.unescape(&buffer[..count], &mut keys);
            serial.input(&keys[..len]);
            if stop {
                return true;
            }
        }
    }

    /// Takes console commands out of what a terminal's user typed: the number of bytes left in
    /// `keys`, and whether to stop.
    fn unescape(&mut self, typed: &[u8], keys: &mut [u8; INPUT_CHUNK]) -> (usize, bool) {
        let mut len = 0;
        for byte in typed {
            if self.interactive {
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

    /// Writes what can be written without blocking.
    fn write_output(&mut self) -> OutputResult {
        for _ in 0..BURST {
            if self.pending.is_empty() && !self.refill() {
                return OutputResult::Done;
            }
            match self.side.write(&self.pending) {
                Written::Bytes(count) => drop(self.pending.drain(..count)),
                Written::Full => return OutputResult::Full,
            }
        }
        OutputResult::More
    }

    /// Takes the next chunk from the queue; false if there is none.
    fn refill(&mut self) -> bool {
        self.pending.resize(CHUNK, 0);
        let count = self.queue.take_output(&mut self.pending);
        self.pending.truncate(count);
        if let Some(stages) = &mut self.stages {
            self.came_further |= stages.see(&self.pending);
        }
        let dropped = self.queue.dropped();
        if dropped > 0 && !self.has_lost {
            tracing::warn!(dropped, "console reader is slow; output is lost");
            self.has_lost = true;
        }
        count > 0
    }

    /// Writes out what is left, at the end; a reader that takes it slowly, or not at all, loses the rest.
    pub fn drain(&mut self) {
        let end = Instant::now() + DRAIN_TIME;
        loop {
            match self.write_output() {
                OutputResult::Done => return,
                OutputResult::More => {}
                OutputResult::Full => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        tracing::warn!("console reader is slow; the last output is lost");
                        return;
                    }
                    self.side.wait(left);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use devices::bus::BusDevice;
    use devices::character::FILE_LIMIT;
    use devices::virtio::testing::FakeIrq;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn fixture(side: std::io::Result<Character>) -> (Console, SerialConsole) {
        let queue = Arc::new(ConsoleQueue::new().expect("eventfd"));
        let serial = SerialConsole::new(&queue, Arc::new(FakeIrq::default()));
        (Console::new(queue, side.expect("descriptors")), serial)
    }

    fn to(output: impl Into<OwnedFd>) -> std::io::Result<Character> {
        Character::streams(None, Some(output.into()), None)
    }

    fn is_woken(console: &Console) -> bool {
        let mut queue = [PollFd::new(console.queue(), PollFlags::IN)];
        poll(&mut queue, Some(&Timespec::default())).expect("poll") > 0
    }

    #[test]
    fn a_reader_that_does_not_read_never_blocks_and_gets_the_rest_later() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        ours.set_nonblocking(true).expect("non-blocking");
        let (mut console, serial) = fixture(to(ours));
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
        let (mut console, serial) = fixture(to(ours));
        while console.write_output() == OutputResult::Done {
            (0..CHUNK).for_each(|_| serial.write(0, b"a"));
        }
        console.drain();
        assert_eq!(
            console.write_output(),
            OutputResult::Full,
            "nobody has read"
        );
        drop(theirs);
    }

    /// Nor for who takes a little again and again, each time before it is given up.
    #[test]
    fn a_slow_reader_is_not_waited_for() {
        const PAGE: usize = 4096;
        let (mut theirs, ours) = std::io::pipe().expect("pipe");
        rustix::io::ioctl_fionbio(&ours, true).expect("non-blocking");
        rustix::pipe::fcntl_setpipe_size(&ours, PAGE).expect("a small pipe");
        let (mut console, serial) = fixture(to(ours));
        let mut written = 0;
        while console.write_output() == OutputResult::Done {
            (0..CHUNK).for_each(|_| serial.write(0, b"a"));
            written += CHUNK;
        }
        // What the queue has room for: the reader would need four times as long for it.
        let pages = 12;
        (0..pages * PAGE).for_each(|_| serial.write(0, b"a"));
        written += pages * PAGE;
        let reader = std::thread::spawn(move || {
            let (mut page, mut read) = ([0; PAGE], 0);
            loop {
                match theirs.read(&mut page).expect("read") {
                    0 => return read,
                    count => read += count,
                }
                std::thread::sleep(4 * DRAIN_TIME / pages as u32);
            }
        });
        console.drain();
        drop(console);
        let read = reader.join().expect("reader");
        assert!(read < written, "all {written} bytes were waited for");
    }

    /// However fast a guest writes, others have their turn.
    #[test]
    fn a_flood_is_written_in_parts() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let (mut console, serial) = fixture(to(file.reopen().expect("open")));
        let size = || file.as_file().metadata().expect("metadata").len() as usize;
        let all = 2 * BURST * CHUNK + 1;
        for _ in 0..all {
            serial.write(0, b"a");
        }
        for expected in [BURST * CHUNK, 2 * BURST * CHUNK, all] {
            assert!(is_woken(&console));
            console.queue().acknowledge();
            assert!(!console.work(&serial));
            assert_eq!(size(), expected);
        }
        assert!(!is_woken(&console));
    }

    #[test]
    fn escape_stops_only_on_a_terminal() {
        let (mut console, _) = fixture(Character::streams(None, None, None));
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
        let (mut console, serial) = fixture(to(output));
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
        let side = Character::streams(None, None, Some(log.reopen().expect("open")));
        let (mut console, serial) = fixture(side);
        for byte in b"hello" {
            serial.write(0, &[*byte]);
        }
        assert_eq!(console.write_output(), OutputResult::Done);
        assert_eq!(std::fs::read(log.path()).expect("read"), b"hello");
    }
}
