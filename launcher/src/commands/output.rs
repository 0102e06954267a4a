//! What commands print on standard output.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use super::CommandError;

/// Prints `text`. A reader that has gone wanted no more.
pub(super) fn print(text: &str) -> Result<(), CommandError> {
    let mut output = io::stdout().lock();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CommandError::System {
            what: "print the answer",
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Prints `value` as JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| CommandError::System {
        what: "write JSON",
        source: error.into(),
    })?;
    print(&(text + "\n"))
}
