//! What somebody at a terminal sees of work that takes long; in a pipe it is silent.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Seek, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::report;

/// How often it is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(500);

/// Whether somebody looks, and since when.
#[derive(Clone, Copy)]
pub(super) struct Progress {
    is_shown: bool,
    start: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            is_shown: io::stderr().is_terminal(),
            start: Instant::now(),
        }
    }

    /// Says what is done now.
    pub(super) fn step(&self, words: fmt::Arguments<'_>) {
        if self.is_shown {
            let seconds = self.start.elapsed().as_secs();
            report::tell(&format!("{words} ({seconds} s)"));
        }
    }

    /// What shows how much of a file is written.
    pub(super) fn of_writing(&self, path: &Path) -> impl FnMut(u64, u64) + use<> {
        let (progress, path, start) = (*self, path.to_owned(), Instant::now());
        let (mut is_begun, mut next) = (false, start + SHOWN_EVERY);
        move |done, of| {
            let now = Instant::now();
            if !progress.is_shown || now < next && done < of {
                return;
            }
            if !std::mem::replace(&mut is_begun, true) {
                progress.step(format_args!("writing {path:?}"));
            }
            next = now + SHOWN_EVERY;
            let milliseconds = (now - start).as_millis().max(1) as u64;
            let end = if done == of { '\n' } else { '\r' };
            // Nobody is told that nobody looks.
            let _ = write!(io::stderr(), "{}{end}", amount(done, of, milliseconds));
        }
    }

    /// Shows how much of `file` somebody else has written from its beginning to its end, who has made it as long as it will
    /// be: its position, which both have, says so.
    pub(super) fn of_file(&self, path: &Path, file: &File) -> Watch {
        let file = file.try_clone().ok().filter(|_| self.is_shown);
        Watch(file.map(|file| {
            let show = self.of_writing(path);
            let (ended, end) = channel();
            (ended, thread::spawn(move || watch(file, &end, show)))
        }))
    }
}

/// A file that is looked at while this lives.
pub(super) struct Watch(Option<(Sender<()>, JoinHandle<()>)>);

impl Watch {
    /// The file is whole.
    pub(super) fn end(&mut self) {
        if let Some((ended, thread)) = self.0.take() {
            // It has gone if it has panicked, and that is told.
            let _ = ended.send(());
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some((ended, thread)) = self.0.take() {
            drop(ended);
            let _ = thread.join();
        }
    }
}

fn watch(mut file: File, end: &Receiver<()>, mut show: impl FnMut(u64, u64)) {
    let mut is_line_open = false;
    loop {
        let ended = end.recv_timeout(SHOWN_EVERY);
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        match ended {
            Ok(()) => return show(size, size),
            Err(RecvTimeoutError::Timeout) => {
                let done = file.stream_position().unwrap_or(0);
                if done < size {
                    show(done, size);
                    is_line_open = true;
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                if is_line_open {
                    let _ = writeln!(io::stderr());
                }
                return;
            }
        }
    }
}

fn amount(done: u64, of: u64, milliseconds: u64) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let rate = mib(done).saturating_mul(1000) / milliseconds;
    format!("  {} of {} MiB, {rate} MiB/s", mib(done), mib(of))
}
