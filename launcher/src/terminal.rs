//! Raw mode of the terminal on standard input while it is the guest's console.
//!
//! Restored when the guard is dropped and by a panic hook (a release build aborts without
//! dropping anything). Output processing stays on, so that log lines start at the left.

use std::io::{self, IsTerminal};
use std::sync::Mutex;

use rustix::termios::{self, OptionalActions, Termios};

/// The mode to go back to, for the guard and the panic hook.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal is in raw mode until this is dropped.
#[derive(Debug)]
#[must_use = "the terminal leaves raw mode when this is dropped"]
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts standard input into raw mode if it is a terminal and ours to read.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || !is_foreground() {
            return Ok(None);
        }
        let saved = termios::tcgetattr(&stdin)?;
        let mut raw = saved.clone();
        raw.make_raw();
        raw.output_modes = saved.output_modes;
        if let Ok(mut slot) = SAVED.lock() {
            *slot = Some(saved);
        }
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether standard input is a terminal that somebody else reads from: touching it from the
/// background would stop the process.
pub fn is_in_background() -> bool {
    io::stdin().is_terminal() && !is_foreground()
}

fn is_foreground() -> bool {
    let group = termios::tcgetpgrp(io::stdin());
    group.is_ok_and(|group| group == rustix::process::getpgrp())
}

fn restore() {
    // The hook may run while the slot is taken; then somebody else is restoring.
    let Ok(mut slot) = SAVED.try_lock() else {
        return;
    };
    if let Some(saved) = slot.take()
        && let Err(error) = termios::tcsetattr(io::stdin(), OptionalActions::Now, &saved)
    {
        tracing::warn!("cannot restore the terminal: {error}");
    }
}
