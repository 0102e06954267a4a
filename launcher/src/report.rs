//! Errors in words: one paragraph that names the thing, the cause and the way out.

use std::error::Error;
use std::fmt::{self, Write};

use tracing::Level;

/// An error and all its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors repeat their cause in their own text.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Words of a vm process or a disk, which are a guest's if it has taken the one over or has written the other:
/// nothing in them acts on a terminal or begins a line.
#[derive(Debug)]
pub(crate) struct Plain<'a>(pub(crate) &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_default()),
            false => f.write_char(c),
        })
    }
}

/// Prints what went wrong on standard error, as far as somebody reads it.
pub fn print(text: &str) {
    crate::logging::paragraph(Level::ERROR, text);
}

/// The same of what somebody should know.
pub(crate) fn tell(text: &str) {
    crate::logging::paragraph(Level::INFO, text);
}
