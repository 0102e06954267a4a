//! What validation found: errors by field path, and notes on fields that have no effect.

use std::fmt;

use serde::Serialize;

use super::places::Places;

/// Errors kept of one document; the rest is only counted.
const MAX_ERRORS: usize = 256;

/// Characters of what a document says that are kept of an error; words of ours are fewer.
const MAX_FOUND: usize = 300;

/// A field that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Where, e.g. `spec.domain.devices.disks[0].disk.bus`.
    pub path: String,
    /// What the document says there.
    pub found: String,
    /// What would be accepted.
    pub accepted: String,
    /// Line of the text, from 1, as far as that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Column of the line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: found {}; accepted: {}",
            self.path, self.found, self.accepted
        )?;
        match (self.line, self.column) {
            (Some(line), Some(column)) => write!(f, " (line {line}, column {column})"),
            _ => Ok(()),
        }
    }
}

/// A field that is accepted but has no effect, or not its full one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Where.
    pub path: String,
    /// Why it has no effect.
    pub note: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.note)
    }
}

/// All errors and notes of one document, in the order in which it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Empty when the document can be honoured.
    pub errors: Vec<FieldError>,
    /// Fields without effect.
    pub notes: Vec<Note>,
}

impl Report {
    /// Whether further errors are left out.
    pub fn is_full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }

    /// Records an error.
    pub fn error(
        &mut self,
        path: impl Into<String>,
        found: impl fmt::Display,
        accepted: impl fmt::Display,
    ) {
        if !self.is_full() {
            self.errors.push(FieldError {
                path: path.into(),
                found: cut(found.to_string()),
                accepted: accepted.to_string(),
                line: None,
                column: None,
            });
        }
    }

    /// Whether there is an error at `path`.
    pub(super) fn has_error_at(&self, path: &str) -> bool {
        self.errors.iter().any(|error| error.path == path)
    }

    /// Says where in its text each error is, by the places of its document.
    pub(super) fn locate(&mut self, places: &Places) {
        for error in &mut self.errors {
            let place = places.find("", &error.path).unwrap_or((1, 1));
            (error.line, error.column) = (Some(place.0), Some(place.1));
        }
    }

    /// Records a note.
    pub fn note(&mut self, path: impl Into<String>, note: impl fmt::Display) {
        if self.notes.len() < MAX_ERRORS {
            self.notes.push(Note {
                path: path.into(),
                note: note.to_string(),
            });
        }
    }
}

/// A document may say megabytes.
fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_FOUND) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// One error a line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        if self.is_full() {
            write!(f, "\n(further errors are not listed)")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_is_cut() {
        let mut report = Report::default();
        report.error("spec", "ü".repeat(1 << 20), "less");
        report.error("spec", "ü", "less");
        let found: Vec<_> = report.errors.iter().map(|error| &error.found).collect();
        assert_eq!(found[0].chars().count(), MAX_FOUND + 1);
        assert_eq!(found[1], "ü");
    }
}
