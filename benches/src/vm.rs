//! A guest under way: its process and its console.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use crate::guest::GuestSpec;
use crate::procfs;
use crate::vmm::Vmm;

/// A virtual machine. Its processes end with it.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    console: File,
    seen: Vec<u8>,
    read: usize,
    started: Instant,
    dir: Arc<TempDir>,
}

impl Vm {
    /// Starts `guest` under `vmm`; the clock runs from just before its program is executed.
    pub fn start(vmm: &Vmm, guest: &GuestSpec) -> Result<Self> {
        Self::start_with(vmm, guest, &[])
    }

    /// The same with more options for the program.
    pub fn start_with(vmm: &Vmm, guest: &GuestSpec, options: &[String]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pv-bench-").tempdir()?;
        let mut command = vmm.command(guest, dir.path())?;
        command
            .args(options)
            .env_remove("STANDALONE_VMI")
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(dir.path().join("stderr"))?);
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("Cannot run {command:?}"))?;
        let console = child.stdout.take().context("no console")?;
        Ok(Self {
            child,
            console: File::from(OwnedFd::from(console)),
            seen: Vec::new(),
            read: 0,
            started,
            dir: Arc::new(dir),
        })
    }

    /// Time since the start until the guest's first byte, the payload's `!`, arrives.
    pub fn first_instruction(&mut self, patience: Duration) -> Result<Duration> {
        loop {
            let at = self.seen.iter().position(|byte| *byte == b'!');
            if let Some(at) = at {
                self.read = at + 1;
                return Ok(self.started.elapsed());
            }
            self.wait(patience, "the first instruction")?;
        }
    }

    /// Time since the start until the guest's first byte, whatever it is.
    pub fn first_byte(&mut self, patience: Duration) -> Result<Duration> {
        if self.seen.is_empty() {
            self.wait(patience, "output")?;
        }
        Ok(self.started.elapsed())
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The next line of the console that contains `text`, and when it arrived.
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> Result<(String, Duration)> {
        let deadline = Instant::now() + patience;
        loop {
            while let Some(line) = self.next_line() {
                if line.contains(text) {
                    return Ok((line, self.started.elapsed()));
                }
                for bad in ["PAYLOAD-EXCEPTION", "PAYLOAD-PANIC", "ERROR "] {
                    if line.contains(bad) {
                        bail!("The guest says {line:?}");
                    }
                }
            }
            self.wait(deadline.saturating_duration_since(Instant::now()), text)?;
        }
    }

    fn next_line(&mut self) -> Option<String> {
        let rest = &self.seen[self.read..];
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..end]).trim_end().to_owned();
        self.read += end + 1;
        Some(line)
    }

    /// Waits for more of the console.
    fn wait(&mut self, patience: Duration, what: &str) -> Result<()> {
        if !readable(&self.console, patience)? {
            bail!(
                "No {what:?} after {:?}: {}",
                self.started.elapsed(),
                self.tell()
            );
        }
        let mut buffer = [0; 4096];
        let n = self.console.read(&mut buffer)?;
        if n == 0 {
            bail!("The machine ended before {what:?}: {}", self.tell());
        }
        self.seen.extend_from_slice(&buffer[..n]);
        Ok(())
    }

    /// What it left on console and standard error, shortened.
    fn tell(&self) -> String {
        let errors = std::fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
        let console = String::from_utf8_lossy(&self.seen).into_owned();
        let end = |text: &str| {
            let from = text.char_indices().rev().nth(599).map_or(0, |(at, _)| at);
            text[from..].to_owned()
        };
        format!("console {:?}, errors {:?}", end(&console), end(&errors))
    }

    /// Whether all its processes are there still.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its processes.
    pub fn pids(&self) -> Vec<u32> {
        procfs::family(self.child.id())
    }

    /// Waits until the guest has ended it; its directory remains.
    pub fn wait_end(mut self, patience: Duration) -> Result<Arc<TempDir>> {
        let deadline = Instant::now() + patience;
        let mut rest = Vec::new();
        while readable(
            &self.console,
            deadline.saturating_duration_since(Instant::now()),
        )? {
            let mut buffer = [0; 4096];
            match self.console.read(&mut buffer)? {
                0 => {
                    self.child.wait()?;
                    return Ok(self.dir.clone());
                }
                n => rest.extend_from_slice(&buffer[..n]),
            }
        }
        bail!("The machine does not end: {}", self.tell())
    }
}

fn readable(console: &File, patience: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
    let mut fds = [PollFd::from_borrowed_fd(console.as_fd(), PollFlags::IN)];
    Ok(poll(&mut fds, Some(&timeout))? > 0)
}

impl Drop for Vm {
    /// Kills it and waits until its last process has let go of the console: the next measurement
    /// should not share the machine with its end.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mut buffer = [0; 4096];
        while matches!(readable(&self.console, Duration::from_secs(5)), Ok(true)) {
            if !matches!(self.console.read(&mut buffer), Ok(1..)) {
                break;
            }
        }
    }
}
