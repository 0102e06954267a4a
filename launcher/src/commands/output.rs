//! What commands print on standard output.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use super::CommandError;
use crate::streams::Stopped;

/// Prints `text`. A reader that has gone wanted no more.
pub(super) fn print(text: &(impl AsRef<[u8]> + ?Sized)) -> Result<(), CommandError> {
    write(&mut io::stdout().lock(), text)
}

/// Prints `text` there: to who has gone, or whom a signal kept from waiting, nothing.
pub(super) fn write(
    output: &mut impl Write,
    text: &(impl AsRef<[u8]> + ?Sized),
) -> Result<(), CommandError> {
    let written = output.write_all(text.as_ref());
    match written.and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe && !Stopped::is(&error) => {
            Err(CommandError::System {
                what: "print the answer",
                source: error,
            })
        }
        _ => Ok(()),
    }
}

/// Prints `value` as JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    print(&json(value)?)
}

/// What [`print_json`] prints.
pub(super) fn json(value: &impl Serialize) -> Result<String, CommandError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| CommandError::System {
        what: "write JSON",
        source: error.into(),
    })?;
    Ok(text + "\n")
}
