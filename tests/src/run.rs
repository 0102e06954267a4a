//! podvisor as a process: what it is given, what it says, how it ends.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

use crate::control::Control;
use crate::transcript::Transcript;
use crate::vmi::Vmi;
use crate::{PATIENCE, guest, host, reason};

/// A run to be.
#[derive(Debug)]
pub struct Run {
    dir: TempDir,
    wrapper: Vec<OsString>,
    args: Vec<OsString>,
    cmdline: String,
    input: bool,
    /// Where it listens for commands, if that is not to be said to it.
    found_at: Option<PathBuf>,
}

impl Run {
    /// A run of `vmi`, without a kernel yet.
    pub fn new(vmi: &Vmi) -> Self {
        let run = Self::with_arguments(["run"]);
        let path = run.dir().join("vmi.yaml");
        fs::write(&path, vmi.to_yaml()).expect("the VMI can be written");
        run.arg(path)
    }

    /// podvisor with these arguments.
    pub fn with_arguments<const N: usize>(args: [&str; N]) -> Self {
        Self {
            dir: tempfile::Builder::new()
                .prefix("pv-")
                .tempdir()
                .expect("a temporary directory"),
            wrapper: Vec::new(),
            args: args.map(OsString::from).into(),
            cmdline: String::new(),
            input: false,
            found_at: None,
        }
    }

    /// Without `--control`: the machine listens at `path`, where it is looked for.
    pub fn found_at(mut self, path: PathBuf) -> Self {
        self.found_at = Some(path);
        self
    }

    /// A directory that lives as long as the run, for disks, sockets and the like.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Boots the test Linux and lets it run `tests`, see `tests/guest/README.md`.
    pub fn linux(self, tests: &str) -> Self {
        let run = self
            .kernel(&guest::vmlinux())
            .arg("--initrd")
            .arg(guest::initrd());
        run.cmdline(&guest::linux_cmdline(tests))
    }

    /// Boots a stock kernel of Debian's as the package has it, with the drivers that the test
    /// Linux has built in as modules, and lets it run `tests`. Needs hardware virtualization.
    pub fn stock_linux(self, tests: &str) -> Self {
        let initrd = self.dir().join("stock-initrd");
        let parts = [guest::initrd(), guest::nested("stock.cpio")];
        let parts = parts.map(|part| fs::read(part).expect("an initrd can be read"));
        fs::write(&initrd, parts.concat()).expect("the initrd can be written");
        self.kernel(&guest::nested("stock-vmlinuz"))
            .arg("--initrd")
            .arg(initrd)
            .cmdline("console=ttyS0 quiet rdinit=/stock-init")
            .cmdline(&format!("test={tests}"))
    }

    /// Boots the bare-metal guest.
    pub fn payload(self, cmdline: &str) -> Self {
        self.kernel(&guest::payload()).cmdline(cmdline)
    }

    /// Boots this kernel.
    pub fn kernel(self, path: &Path) -> Self {
        self.arg("--kernel").arg(path)
    }

    /// Adds to the kernel command line.
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline.push_str(words);
        self.cmdline.push(' ');
        self
    }

    /// Where a volume is.
    pub fn volume(self, name: &str, path: &Path) -> Self {
        let mut value = OsString::from(format!("{name}="));
        value.push(path);
        self.arg("--volume").arg(value)
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Lets the test write to the console through [`Guest::type_line`].
    pub fn with_input(mut self) -> Self {
        self.input = true;
        self
    }

    /// Runs podvisor by a program that executes its arguments, such as `ip netns exec NAME`.
    pub fn within<S: AsRef<OsStr>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Self {
        self.wrapper = wrapper
            .into_iter()
            .map(|word| word.as_ref().to_owned())
            .collect();
        self
    }

    /// Starts podvisor when fewer than [`GUESTS`] others are under way.
    #[track_caller]
    pub fn start(self) -> Guest {
        let slot = Slot::take();
        self.spawn(Some(slot))
    }

    /// Starts a podvisor that never gets as far as a guest, or one more for a test that has a guest: who holds one place
    /// and waits for another can wait for ever.
    #[track_caller]
    pub fn start_at_once(self) -> Guest {
        self.spawn(None)
    }

    #[track_caller]
    fn spawn(mut self, slot: Option<Slot>) -> Guest {
        reason::keep();
        let is_run = self.args[0] == "run";
        if is_run {
            self = self.arg("--log-level").arg("debug");
        }
        let control = match self.found_at.take() {
            Some(path) => path,
            None => {
                let path = self.dir().join("control.sock");
                let option = format!("--control=unix:{}", path.display());
                self = if is_run { self.arg(option) } else { self };
                path
            }
        };
        if !self.cmdline.is_empty() {
            let cmdline = std::mem::take(&mut self.cmdline);
            self = self.arg("--cmdline").arg(cmdline.trim());
        }
        // A test binary that is killed runs no destructor; its guests should end all the same.
        let mut words = ["setpriv", "--pdeathsig", "TERM"]
            .map(OsString::from)
            .to_vec();
        words.append(&mut self.wrapper);
        words.push(guest::podvisor().into());
        words.append(&mut self.args);
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .env_remove("STANDALONE_VMI")
            // What it keeps goes with the test.
            .env("XDG_DATA_HOME", self.dir.path().join("data"))
            .env("XDG_STATE_HOME", self.dir.path().join("state"))
            .stdin(if self.input {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("Cannot run {words:?}: {error}"));
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        Guest {
            stdin: child.stdin.take(),
            console: Transcript::follow("console", stdout),
            log: Transcript::follow("log", stderr),
            pid: Pid::from_child(&child),
            child,
            status: None,
            control,
            words,
            dir: self.dir,
            slot,
        }
    }
}

/// `podvisor ctl` with these words, which may say no machine.
pub fn ctl(words: &[&str]) -> Output {
    let mut ctl = Command::new(guest::podvisor());
    let output = ctl.arg("ctl").args(words).output();
    output.expect("podvisor can be run")
}

/// A podvisor that was started, and its guest.
#[derive(Debug)]
pub struct Guest {
    /// Standard output, which is the guest's console unless `--console` says otherwise.
    pub console: Transcript,
    /// Standard error.
    pub log: Transcript,
    stdin: Option<ChildStdin>,
    child: Child,
    pid: Pid,
    status: Option<ExitStatus>,
    control: PathBuf,
    words: Vec<OsString>,
    dir: TempDir,
    slot: Option<Slot>,
}

impl Guest {
    /// The next line of the console with `text` in it.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        self.console.wait_for(text, PATIENCE)
    }

    /// The value of the line `RESULT key=value`.
    #[track_caller]
    pub fn result(&self, key: &str) -> String {
        self.console.result(key, PATIENCE)
    }

    /// Waits until the guest's first instruction may run; sockets are there by then.
    #[track_caller]
    pub fn wait_until_running(&self) {
        self.log.wait_for("Running", PATIENCE);
    }

    /// The value of the next line `RESULT key=value`; later calls look behind it.
    #[track_caller]
    pub fn next_result(&self, key: &str) -> String {
        let start = format!("RESULT {key}=");
        let value = |line: &str| line.strip_prefix(&start).map(str::to_owned);
        self.console.wait_for_match(value, PATIENCE)
    }

    /// Expects these values of the next lines `RESULT key=value`, in this order.
    #[track_caller]
    pub fn says(&self, results: &[(&str, &str)]) {
        for (key, value) in results {
            assert_eq!(self.next_result(key), *value, "{key}");
        }
    }

    /// Types a line.
    #[track_caller]
    pub fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("the run was started with input");
        let written = stdin.write_all(format!("{line}\n").as_bytes());
        written.expect("the console takes input");
    }

    /// The run's directory, which lives as long as this.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// A new connection to the control socket, which is there once the guest runs.
    #[track_caller]
    pub fn control(&self) -> Control {
        Control::connect(&self.control)
    }

    /// `podvisor ctl` with these words.
    pub fn ctl(&self, words: &[&str]) -> Output {
        let output = self.ctl_command(words).output();
        output.expect("podvisor runs")
    }

    /// The same, to be started.
    pub fn ctl_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(guest::podvisor());
        command.args(["ctl", "--vm"]).arg(&self.control).args(words);
        command
    }

    /// What somebody at a terminal sees of it.
    #[track_caller]
    pub fn ctl_on_a_terminal(&self, words: &[&str]) -> String {
        let command = self.ctl_command(words);
        let quoted = |word: &OsStr| format!("'{}'", word.display());
        let command_words = std::iter::once(command.get_program()).chain(command.get_args());
        let line: Vec<_> = command_words.map(quoted).collect();
        host("script", &["-qec", &line.join(" "), "/dev/null"])
    }

    /// The same, which has to succeed.
    #[track_caller]
    pub fn ctl_does(&self, words: &[&str]) {
        let output = self.ctl(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
    }

    /// Kills the launcher, if it has not ended, and its vm process, if there is one. Whether the
    /// launcher had not ended.
    pub fn kill_both(&mut self) -> bool {
        let vm = self.vm_pid_now();
        // Not reaped yet, so the number is still the launcher's.
        let _ = kill_process(self.pid, Signal::KILL);
        if let Some(vm) = vm {
            // It ends by itself when the launcher does, and may have.
            let _ = kill_process(vm, Signal::KILL);
        }
        self.wait().code().is_none()
    }

    /// Sends a signal to the launcher.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("the launcher runs");
    }

    /// The launcher.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The vm process.
    #[track_caller]
    pub fn vm_pid(&self) -> Pid {
        self.vm_pid_now().expect("the launcher has a vm process")
    }

    /// The vm process, if there is one at the moment.
    pub fn vm_pid_now(&self) -> Option<Pid> {
        let pid = self.pid.as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.ok()?;
        let first = children.split_whitespace().next()?;
        Pid::from_raw(first.parse().ok()?)
    }

    /// The launcher's child whose name begins so.
    #[track_caller]
    pub fn child(&self, name: &str) -> Pid {
        let pid = self.pid.as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.expect("the launcher runs");
        let found = children.split_whitespace().find(|child| {
            let comm = fs::read_to_string(format!("/proc/{child}/comm"));
            comm.is_ok_and(|comm| comm.starts_with(name))
        });
        let found = found
            .and_then(|child| child.parse().ok())
            .and_then(Pid::from_raw);
        found.unwrap_or_else(|| panic!("the launcher has no child {name:?}"))
    }

    /// Waits for the end and expects this exit status.
    #[track_caller]
    pub fn exits_with(&mut self, code: i32) {
        let status = self.wait();
        let signal = status.signal();
        assert_eq!(
            status.code(),
            Some(code),
            "exit status of podvisor (signal {signal:?})"
        );
    }

    /// The same of a run in which a Linux boots, works and ends without a word.
    #[track_caller]
    pub fn exits_in_the_end_with(&mut self, code: i32) {
        assert!(self.ends_within(4 * PATIENCE), "podvisor does not end");
        self.exits_with(code);
    }

    /// Waits for the end, until which console and log are complete.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        assert!(self.ends_within(PATIENCE), "podvisor does not end");
        let status = self.child.wait().expect("podvisor can be waited for");
        self.status = Some(status);
        self.console.wait_for_end(PATIENCE);
        self.log.wait_for_end(PATIENCE);
        self.slot = None;
        status
    }

    /// Fails if one of these words is in the log.
    #[track_caller]
    pub fn log_lacks(&self, words: &[&str]) {
        let text = self.log.text();
        for word in words {
            assert!(!text.contains(word), "{word:?} is in the log:\n{text}");
        }
    }

    /// Expects these words in what podvisor said on standard error, or says soon: a log goes its own way, behind what
    /// it tells of.
    #[track_caller]
    pub fn log_has(&self, words: &[&str]) {
        for word in words {
            assert!(
                self.log.comes_to_say(word, PATIENCE),
                "{word:?} is missing in the log:\n{}",
                self.log.text()
            );
        }
    }

    /// Expects one line with all of these words in what podvisor said to its user.
    #[track_caller]
    pub fn log_says_once(&self, words: &[&str]) {
        let text = self.log.text();
        let lines = text.lines();
        let lines = lines.filter(|line| !line.contains(" DEBUG "));
        let count = lines.filter(|line| words.iter().all(|word| line.contains(word)));
        assert_eq!(count.count(), 1, "{words:?} in the log:\n{text}");
    }

    fn ends_within(&self, timeout: Duration) -> bool {
        let fd = pidfd_open(self.pid, PidfdFlags::empty()).expect("podvisor is not reaped");
        let seconds = timeout.as_secs().try_into().unwrap_or(i64::MAX);
        let timeout = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        loop {
            match poll(&mut fds, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                ready => return ready.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("---- command {:?}: {:?}", self.words, self.status);
            self.console.print();
            self.log.print();
            println!("---- {}", reason::last());
        }
        if self.status.is_none() {
            // The second signal of a kind that podvisor obeys at once, so that it tidies up.
            self.signal(Signal::TERM);
            self.signal(Signal::INT);
            if !self.ends_within(Duration::from_secs(30)) {
                self.signal(Signal::KILL);
            }
            // Nothing can be done about an error here.
            let _ = self.child.wait();
        }
    }
}

/// Guests at a time: as many as CI machines have CPUs.
pub const GUESTS: usize = 2;

static TAKEN: Mutex<usize> = Mutex::new(0);
static RETURNED: Condvar = Condvar::new();

/// The right to run a guest.
#[derive(Debug)]
pub struct Slot;

impl Slot {
    /// Waits until fewer than [`GUESTS`] others have it.
    pub fn take() -> Self {
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let free = RETURNED.wait_while(taken, |taken| *taken >= GUESTS);
        *free.unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        RETURNED.notify_one();
    }
}
