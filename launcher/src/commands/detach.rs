//! `podvisor run --detach`: a run of its own, which is left to itself once its machine runs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::net::sockopt;
use serde_json::Value;
use thiserror::Error;

use super::{CommandError, output, plan};
use crate::cli::RunArgs;
use crate::exit::Exit;
use crate::kept::{self, MachineFiles};
use crate::machines;

/// Time between two looks at what has been started.
const PAUSE: Duration = Duration::from_millis(20);

/// A run is not left to itself.
#[derive(Debug, Error)]
pub enum DetachError {
    /// It would be read twice.
    #[error("A VMI on standard input or in the environment cannot be run with --detach")]
    NoFile,
    /// There is no place for the files.
    #[error("There is no directory for log and console: neither XDG_STATE_HOME nor HOME is set")]
    NoState,
    /// There is no place for the socket.
    #[error("There is no directory for the control socket: XDG_RUNTIME_DIR is not set")]
    NoRuntime,
    /// Another machine has the name.
    #[error("A machine called {0:?} runs, which podvisor ctl --vm {0} stop ends")]
    Runs(String),
    /// The files cannot be made.
    #[error("Cannot make the files for log and console, {path:?} among them")]
    Files {
        /// One of them.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It cannot be started.
    #[error("Cannot start a podvisor for the machine")]
    Start(#[source] io::Error),
}

impl DetachError {
    pub(super) fn way_out(&self) -> &'static str {
        match self {
            Self::NoFile => "Name a file.",
            Self::NoState | Self::Files { .. } => "Set XDG_STATE_HOME to a directory of yours.",
            Self::NoRuntime => "Say where it is to be: --control unix:PATH.",
            Self::Runs(_) => "Stop it, or choose another name with --name.",
            Self::Start(_) => "",
        }
    }
}

/// Starts the run and returns when its guest runs, or with its status when it has ended before.
pub(super) fn detach(args: &RunArgs) -> Result<Exit, CommandError> {
    let stdin = Path::new("-");
    if args.machine.vmi.as_deref().is_none_or(|path| path == stdin) {
        return Err(DetachError::NoFile.into());
    }
    let name = plan::load(&args.machine)?.name;
    let socket = match &args.control {
        Some(path) => path.clone(),
        None => {
            let directory = machines::directory().ok_or(DetachError::NoRuntime)?;
            if machines::find(&directory, &name).is_some() {
                return Err(DetachError::Runs(name).into());
            }
            machines::make(&directory).map_err(files_of(&directory))?;
            machines::socket(&directory, &name)
        }
    };
    let state = kept::state_directory().ok_or(DetachError::NoState)?;
    let files = MachineFiles::of(&state, &name);
    let log = files.begin().map_err(files_of(&files.log))?;
    let mut child = start(args, &socket, &files, log).map_err(DetachError::Start)?;
    match wait(&mut child, &socket).map_err(DetachError::Start)? {
        None => {
            let (log, console) = (files.log.display(), files.console.display());
            output::print(&format!(
                "{name} runs; messages: {log}, console: {console}\n"
            ))?;
            Ok(Exit::Success)
        }
        Some(status) => {
            let said = fs::read(&files.log).unwrap_or_default();
            // There is nowhere else to say it.
            let _ = io::stderr().write_all(&said);
            Ok(status.code().map_or(Exit::Internal, Exit::of_status))
        }
    }
}

fn files_of(path: &Path) -> impl FnOnce(io::Error) -> DetachError {
    let path = path.to_owned();
    move |source| DetachError::Files { path, source }
}

/// This command line once more, with all ends tied up.
fn start(args: &RunArgs, socket: &Path, files: &MachineFiles, log: File) -> io::Result<Child> {
    let mut words = std::env::args_os().skip(1);
    let mut command = Command::new(std::env::current_exe()?);
    command.args(words.next()).arg("--detached");
    let option = |name: &str, path: &Path| {
        let mut option = OsString::from(name);
        option.push(path);
        option
    };
    if args.control.is_none() {
        command.arg(option("--control=unix:", socket));
    }
    if args.console.is_none() {
        command.arg(option("--console=file:", &files.console));
    }
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command.stderr(log).spawn()
}

/// Waits until the machine runs or stands still as its VMI wants it, or until its podvisor has ended.
fn wait(child: &mut Child, socket: &Path) -> io::Result<Option<ExitStatus>> {
    let mut events = None;
    let mut line = String::new();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        match &mut events {
            None => events = connect(child, socket),
            Some(stream) => match stream.read_line(&mut line) {
                Ok(0) => events = None,
                Ok(_) => {
                    let message: Value = serde_json::from_str(&line).unwrap_or_default();
                    if message["state"] == "running" || message["state"] == "paused" {
                        return Ok(None);
                    }
                    line.clear();
                }
                // What has come of a line stays in it.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => events = None,
            },
        }
        if events.is_none() {
            line.clear();
            sleep(PAUSE);
        }
    }
}

/// A connection to the run's own control socket, once it listens there: a run of another time or user may have left one.
fn connect(child: &Child, socket: &Path) -> Option<BufReader<UnixStream>> {
    let stream = UnixStream::connect(socket).ok()?;
    let peer = sockopt::socket_peercred(&stream).ok()?;
    if peer.pid.as_raw_nonzero().get().cast_unsigned() != child.id() {
        return None;
    }
    stream.set_read_timeout(Some(PAUSE)).ok()?;
    Some(BufReader::new(stream))
}
