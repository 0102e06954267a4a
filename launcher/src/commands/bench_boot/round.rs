//! One start, and when it came how far.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use vmm::texts::Texts;
use vmm::trace::Mark;

use super::BenchBootError;
use crate::boot_trace::RUNNING;
use crate::supervise::Signals;

/// How it is called here.
const FIRST_INSTRUCTION: &str = "first instruction";

/// The step after which nothing was waited for.
const END: &str = "end";

/// Longest time that a program which was stopped has to end, and how often it is looked at.
const TO_END: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(2);

/// Bytes of a console that are read at once.
const CHUNK: usize = 4096;

/// What is started and timed.
pub(super) struct Program {
    /// For people.
    pub(super) name: String,
    arguments: Vec<OsString>,
    /// Where podvisor leaves its trace and its messages, if this is it.
    podvisor: Option<Files>,
}

struct Files {
    trace: PathBuf,
    log: PathBuf,
}

/// How far a start has come, and the time from its execution on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) took: Duration,
}

/// Of one of podvisor's processes.
#[derive(Deserialize)]
struct Timeline {
    marks: Vec<Mark>,
}

impl Program {
    /// `podvisor run` with these arguments, whose files are in `directory`.
    pub(super) fn podvisor(arguments: Vec<OsString>, directory: &Path) -> Self {
        Self {
            name: "podvisor".to_owned(),
            arguments,
            podvisor: Some(Files {
                trace: directory.join("trace.json"),
                log: directory.join("log"),
            }),
        }
    }

    /// What podvisor said in its last run. That it was stopped is of no interest where all went well.
    pub(super) fn show_log(&self) {
        let log = self
            .podvisor
            .as_ref()
            .and_then(|files| fs::read(&files.log).ok());
        // There is nobody else to tell.
        let _ = io::stderr().write_all(&log.unwrap_or_default());
    }

    /// A command for the shell.
    pub(super) fn shell(command: &str) -> Self {
        let arguments = ["sh", "-c", command].map(OsString::from).into();
        Self {
            name: command.to_owned(),
            arguments,
            podvisor: None,
        }
    }

    /// Starts it, waits until its console has had each of `until` (or to its end, if there are none), and stops it.
    /// The `usual` texts are timed if they come.
    pub(super) fn time(
        &self,
        until: &[String],
        usual: &[&str],
        patience: Duration,
        signals: &Signals,
    ) -> Result<Vec<Step>, BenchBootError> {
        let fail = |source| BenchBootError::Run {
            program: self.name.clone(),
            source,
        };
        let mut command = self.command().map_err(fail)?;
        let start = now();
        let mut running = Running(command.spawn().map_err(fail)?, self.podvisor.is_some());
        let console = running.0.stdout.take();
        let mut console = console.ok_or_else(|| fail(io::ErrorKind::BrokenPipe.into()))?;
        let wanted = until.iter().map(|text| (text.as_str(), true));
        let others = usual.iter().map(|text| (*text, false));
        let mut watch = Watch::new(others.chain(wanted));
        let mut chunk = [0; CHUNK];
        while !watch.is_done() || until.is_empty() {
            let left = (start + patience).saturating_sub(now());
            match wait(&console, signals, left).map_err(fail)? {
                Woken::Readable => {}
                Woken::Stopped => return Err(BenchBootError::Stopped),
                Woken::TooLate => {
                    return Err(BenchBootError::Silent {
                        program: self.name.clone(),
                        text: watch.next().unwrap_or_default().to_owned(),
                        patience,
                    });
                }
            }
            match console.read(&mut chunk).map_err(fail)? {
                0 => break,
                len => watch.see(&chunk[..len], now().saturating_sub(start)),
            }
        }
        let ended = now().saturating_sub(start);
        let status = running.stop().map_err(fail)?;
        if !watch.is_done() {
            return Err(BenchBootError::Ended {
                program: self.name.clone(),
                status,
                text: watch.next().unwrap_or_default().to_owned(),
            });
        }
        if until.is_empty() && !status.success() {
            return Err(BenchBootError::Failed {
                program: self.name.clone(),
                status,
            });
        }
        let mut steps = Vec::new();
        if let Some(files) = &self.podvisor {
            let took = first_instruction(&files.trace, start);
            steps.push(took.ok_or_else(|| BenchBootError::NoGuest {
                program: self.name.clone(),
                status,
            })?);
        }
        steps.extend(watch.steps());
        if until.is_empty() {
            steps.push(Step {
                name: END.to_owned(),
                took: ended,
            });
        }
        Ok(steps)
    }

    fn command(&self) -> io::Result<Command> {
        let mut command = match &self.podvisor {
            Some(files) => {
                let mut command = Command::new(std::env::current_exe()?);
                let parent = std::process::id().to_string();
                command.args(["run", "--end-with", &parent, "--boot-trace"]);
                command.arg(&files.trace).args(&self.arguments);
                command.stderr(File::create(&files.log)?);
                // Nothing of the run before it, if this one has no guest.
                File::create(&files.trace)?;
                command
            }
            None => {
                let mut command = Command::new(&self.arguments[0]);
                // All that it starts is ended with it.
                command.args(&self.arguments[1..]).process_group(0);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(command)
    }
}

/// By the trace of a podvisor that has ended; none if there was no guest.
fn first_instruction(trace: &Path, start: Duration) -> Option<Step> {
    let text = fs::read(trace).ok()?;
    let timelines: Vec<Timeline> = serde_json::from_slice(&text).ok()?;
    let mut marks = timelines.iter().flat_map(|timeline| &timeline.marks);
    let running = marks.find(|mark| mark.step == RUNNING)?;
    Some(Step {
        name: FIRST_INSTRUCTION.to_owned(),
        took: Duration::from_nanos(running.at_ns).saturating_sub(start),
    })
}

/// The clock of the trace.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// Why a wait has ended.
enum Woken {
    /// There is more, or there is the end of it.
    Readable,
    /// A signal wants the end.
    Stopped,
    TooLate,
}

fn wait(console: &impl AsFd, signals: &Signals, patience: Duration) -> io::Result<Woken> {
    let end = now() + patience;
    loop {
        let left = end.saturating_sub(now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [console.as_fd(), signals.as_fd()]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if signals.want_end() {
            return Ok(Woken::Stopped);
        }
        // A console that never falls silent has no more time than others.
        if left.is_zero() {
            return Ok(Woken::TooLate);
        }
        if !fds[0].revents().is_empty() {
            return Ok(Woken::Readable);
        }
    }
}

/// A child, which does not outlive this, and whether it is podvisor.
struct Running(Child, bool);

impl Running {
    /// Stops it: podvisor by the second of two signals, which leaves the network as it was. One that does not end by
    /// that is killed.
    fn stop(&mut self) -> io::Result<ExitStatus> {
        if self.0.try_wait()?.is_none() {
            self.signal();
        }
        let end = now() + TO_END;
        while now() < end {
            match self.0.try_wait()? {
                Some(status) => return Ok(status),
                None => std::thread::sleep(LOOK),
            }
        }
        self.0.kill()?;
        self.0.wait()
    }

    fn signal(&self) {
        let pid = Pid::from_child(&self.0);
        // It may just have ended, and is not reaped before `wait`.
        match self.1 {
            true => {
                let _ = kill_process(pid, Signal::TERM);
                let _ = kill_process(pid, Signal::INT);
            }
            false => {
                let _ = kill_process_group(pid, Signal::KILL);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Where all is well it has been done.
        let _ = self.stop();
    }
}

/// What was waited for, and when it came.
struct Watch<'a> {
    awaited: Vec<Awaited<'a>>,
    texts: Texts<'a>,
}

struct Awaited<'a> {
    text: &'a str,
    required: bool,
    came: Option<Duration>,
}

impl<'a> Watch<'a> {
    fn new(texts: impl Iterator<Item = (&'a str, bool)>) -> Self {
        let awaited = |(text, required)| Awaited {
            text,
            required,
            came: None,
        };
        let awaited: Vec<_> = texts.map(awaited).collect();
        Self {
            texts: Texts::new(awaited.iter().map(|one| one.text)),
            awaited,
        }
    }

    fn see(&mut self, bytes: &[u8], at: Duration) {
        let awaited = &mut self.awaited;
        self.texts
            .see(bytes, |index| awaited[index].came = Some(at));
    }

    fn is_done(&self) -> bool {
        self.next().is_none()
    }

    /// The first text that is required and has not come.
    fn next(&self) -> Option<&'a str> {
        let mut missing = self.awaited.iter();
        let missing = missing.find(|one| one.required && one.came.is_none());
        missing.map(|one| one.text)
    }

    fn steps(self) -> impl Iterator<Item = Step> {
        self.awaited.into_iter().filter_map(|one| {
            Some(Step {
                name: format!("{:?}", one.text),
                took: one.came?,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn all_that_is_required_is_waited_for() {
        let mut watch = Watch::new([("kernel", false), ("login:", true)].into_iter());
        for (at, bytes) in ["ker", "nel\n", "log", "out log", "in", ": "]
            .iter()
            .enumerate()
        {
            assert!(!watch.is_done());
            watch.see(bytes.as_bytes(), Duration::from_secs(at as u64));
        }
        assert!(watch.is_done());
        let took: Vec<_> = watch.steps().map(|step| step.took.as_secs()).collect();
        assert_eq!(took, [1, 5]);
    }

    #[test]
    fn a_program_is_timed_and_stopped() {
        let signals = Signals::watch().expect("a descriptor");
        let time = |command: &str, until: &[String], patience| {
            let program = Program::shell(command);
            program.time(until, &["one", "three"], patience, &signals)
        };
        let until = ["two".to_owned()];
        let steps = time("echo one; echo two; sleep 1000", &until, PATIENCE).expect("timed");
        let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(names, ["\"one\"", "\"two\""]);
        let to_the_end = time("echo one", &[], PATIENCE).expect("timed");
        assert_eq!(to_the_end[1].name, END);
        let failed = time("echo one; exit 3", &[], PATIENCE);
        assert!(matches!(failed, Err(BenchBootError::Failed { .. })));
        let ended = time("echo one; exit 3", &until, PATIENCE);
        let ended = ended.expect_err("it says nothing more").to_string();
        assert!(ended.contains("exit status: 3"), "{ended}");
        let silent = time("sleep 1000", &until, Duration::from_millis(1));
        assert!(matches!(silent, Err(BenchBootError::Silent { .. })));
    }

    #[test]
    fn the_first_instruction_is_in_the_trace() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let trace = directory.path().join("trace.json");
        assert_eq!(first_instruction(&trace, Duration::ZERO), None);
        let marks = |step: &str| json!({"process": "vm", "marks": [{"step": step, "atNs": 5000}]});
        let write = |step| fs::write(&trace, json!([marks("start"), marks(step)]).to_string());
        write("devices").expect("ours");
        assert_eq!(first_instruction(&trace, Duration::ZERO), None);
        write("running").expect("ours");
        let step = first_instruction(&trace, Duration::from_nanos(2000)).expect("a guest");
        assert_eq!(step.took, Duration::from_nanos(3000));
    }
}
