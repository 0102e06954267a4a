//! The machine while it runs: what comes from its two ports, its end, and whoever wants it to end.

use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal as Number, kill_process};

use super::{CustomizeError, Sink};
use crate::exit::Exit;
use crate::supervise::Signals;

/// Names of the ports, and of their sockets: what the script prints, and how it ends.
pub(super) const PORTS: [&str; 2] = ["podvisor.output", "podvisor.status"];

/// How often a port is looked for that is not there yet. A guest that writes to it waits for that.
const LOOK: Duration = Duration::from_millis(20);

/// Time that the machine may take to end when it was told to.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// What is read at once, bytes.
const CHUNK: usize = 64 << 10;

/// What a guest may say about the end of its script, bytes.
const MAX_WORDS: usize = 4096;

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// How the machine's process did.
    pub(super) exit: Exit,
    /// The script's status, if the guest told.
    pub(super) status: Option<i32>,
    /// The guest has forgotten who it is.
    pub(super) sealed: bool,
}

/// A port's socket, once somebody listens there.
struct Port {
    path: PathBuf,
    stream: Option<UnixStream>,
}

/// A machine that runs.
pub(super) struct Session<'a> {
    child: Child,
    ports: [Port; 2],
    signals: &'a Signals,
    timeout: Duration,
    /// When patience ends.
    deadline: Instant,
    /// Why it was told to end.
    told: Option<CustomizeError>,
    words: Vec<u8>,
}

impl<'a> Session<'a> {
    /// Starts it; its sockets will be in `directory`.
    pub(super) fn start(
        mut command: Command,
        directory: &Path,
        timeout: Duration,
        signals: &'a Signals,
    ) -> Result<Self, CustomizeError> {
        Ok(Self {
            child: command.spawn().map_err(CustomizeError::Machine)?,
            ports: PORTS.map(|name| Port {
                path: directory.join(name),
                stream: None,
            }),
            signals,
            timeout,
            deadline: Instant::now() + timeout,
            told: None,
            words: Vec::new(),
        })
    }

    /// Waits for its end; what the script prints goes to `sink`.
    pub(super) fn wait(mut self, sink: &mut Sink) -> Result<Ended, CustomizeError> {
        let status = loop {
            if let Some(status) = self.child.try_wait().map_err(CustomizeError::Machine)? {
                break status;
            }
            self.turn(sink)?;
        };
        if let Some(error) = self.told.take() {
            return Err(error);
        }
        self.read_last(sink)?;
        Ok(ended(status, &self.words))
    }

    /// What it said last is still in the sockets.
    fn read_last(&mut self, sink: &mut Sink) -> Result<(), CustomizeError> {
        while self.read(sink) || sink.waits_for().is_some() {
            if sink.waits_for().is_none() {
                continue;
            }
            self.sleep(sink)?;
            sink.flush();
            if self.signals.want_end() {
                return Err(CustomizeError::Stopped);
            }
            if Instant::now() >= self.deadline {
                return Err(CustomizeError::TooLate(self.timeout.as_secs()));
            }
        }
        Ok(())
    }

    fn turn(&mut self, sink: &mut Sink) -> Result<(), CustomizeError> {
        for port in &mut self.ports {
            port.look();
        }
        self.sleep(sink)?;
        sink.flush();
        self.read(sink);
        if self.signals.want_end() {
            self.end(CustomizeError::Stopped);
        }
        if Instant::now() >= self.deadline {
            match self.told {
                None => self.end(CustomizeError::TooLate(self.timeout.as_secs())),
                Some(_) => {
                    self.signal(Number::KILL);
                    self.deadline = Instant::now() + END_TIMEOUT;
                }
            }
        }
        Ok(())
    }

    /// Until something happens, a port may be there, or it is time.
    fn sleep(&self, sink: &Sink) -> Result<(), CustomizeError> {
        let mut left = self.deadline.saturating_duration_since(Instant::now());
        let mut fds = vec![PollFd::new(self.signals, PollFlags::IN)];
        let sink = sink.waits_for();
        if let Some(output) = sink {
            fds.push(PollFd::from_borrowed_fd(output, PollFlags::OUT));
        }
        let [output, status] = &self.ports;
        for port in sink.is_none().then_some(output).into_iter().chain([status]) {
            match &port.stream {
                Some(stream) => fds.push(PollFd::new(stream, PollFlags::IN)),
                None => left = left.min(LOOK),
            }
        }
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(CustomizeError::Machine(errno.into())),
        }
    }

    /// Reads what is there of both, some of it at once; what the script prints only as fast as it is taken. Whether there
    /// was anything.
    fn read(&mut self, sink: &mut Sink) -> bool {
        let [output, status] = &mut self.ports;
        let words = &mut self.words;
        let said = sink.waits_for().is_none() && output.read(&mut |bytes| sink.hear(bytes));
        let told = status.read(&mut |bytes| {
            let room = MAX_WORDS.saturating_sub(words.len());
            words.extend(bytes.iter().take(room));
        });
        said || told
    }

    /// The second signal ends it at once: what it has written is of no use.
    fn end(&mut self, why: CustomizeError) {
        self.signal(Number::TERM);
        self.signal(Number::INT);
        // Who asks again does not put off its end.
        if self.told.is_none() {
            self.told = Some(why);
            self.deadline = Instant::now() + END_TIMEOUT;
        }
    }

    fn signal(&self, signal: Number) {
        // Not reaped yet, so the number is still its own; it may be gone.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Session<'_> {
    /// Nobody would wait for it any more.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(Number::KILL);
            let _ = self.child.wait();
        }
    }
}

impl Port {
    fn look(&mut self) {
        if self.stream.is_none()
            && let Ok(stream) = UnixStream::connect(&self.path)
            && stream.set_nonblocking(true).is_ok()
        {
            self.stream = Some(stream);
        }
    }

    /// Whether there was anything.
    fn read(&mut self, hear: &mut dyn FnMut(&[u8])) -> bool {
        let Some(stream) = &mut self.stream else {
            return false;
        };
        let mut bytes = [0; CHUNK];
        match stream.read(&mut bytes) {
            Ok(0) => {
                self.stream = None;
                false
            }
            Ok(count) => {
                hear(&bytes[..count]);
                true
            }
            Err(error) => {
                let goes_on = [ErrorKind::WouldBlock, ErrorKind::Interrupted];
                if !goes_on.contains(&io::Error::kind(&error)) {
                    self.stream = None;
                }
                false
            }
        }
    }
}

fn ended(status: ExitStatus, words: &[u8]) -> Ended {
    let (told, sealed) = told(words);
    Ended {
        exit: status.code().map_or(Exit::Internal, Exit::of_status),
        status: told,
        sealed,
    }
}

/// What the guest said: `status N`, then perhaps `sealed`, each a line; the status, and whether it is sealed.
pub fn told(words: &[u8]) -> (Option<i32>, bool) {
    let text = String::from_utf8_lossy(words);
    let told = text.lines().find_map(|line| line.strip_prefix("status "));
    let status = told.and_then(|number| number.parse().ok());
    (status, text.lines().any(|line| line == "sealed"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_guest_is_believed_no_more_than_it_says() {
        let ended = |words: &[u8]| {
            let ended = ended(ExitStatus::from_raw(0), words);
            (ended.status, ended.sealed)
        };
        assert_eq!(ended(b"status 0\nsealed\n"), (Some(0), true));
        assert_eq!(ended(b"status 3\n"), (Some(3), false));
        assert_eq!(ended(b""), (None, false));
        assert_eq!(ended(b"status \xff\nstatus 0\nunsealed\n"), (None, false));
        assert_eq!(ended(b"status 99999999999999\nsealed"), (None, true));
    }

    #[test]
    fn the_machine_that_is_killed_has_no_status_of_its_own() {
        let killed = ExitStatus::from_raw(9);
        assert_eq!(super::ended(killed, b"status 0\n").exit, Exit::Internal);
        let refused = ExitStatus::from_raw(5 << 8);
        assert_eq!(super::ended(refused, b"").exit, Exit::HostResource);
    }
}
