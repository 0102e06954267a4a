//! `podvisor explain`: what becomes of a field.

use std::fmt::Write;

use super::{CommandError, output};
use crate::exit::Exit;
use crate::vmi::fields::{self, Field};
use crate::vmi::instancetype;

/// Where to read on after an error in a field.
pub(super) const HINT: &str =
    "`podvisor explain FIELD` says what becomes of a field, and which values it may have.";

/// What finds fields that are not so.
const WHERE: &str = "`podvisor validate FILE` says where a VMI has something else.\n";

/// Prints what becomes of one field, or of all.
pub(super) fn explain(wanted: Option<&str>) -> Result<Exit, CommandError> {
    let text = match wanted {
        None => fields::all()
            .map(|field| format!("{}  {}\n", field.path, field.class))
            .collect(),
        Some(wanted) => {
            let found = fields::lookup(wanted);
            if found.is_empty() {
                if let Some(given) = instancetype::fields::lookup(wanted) {
                    output::print(&format!("{wanted}\n  becomes {}\n", given.becomes))?;
                    return Ok(Exit::Success);
                }
                return Err(CommandError::NoSuchField(wanted.chars().take(80).collect()));
            }
            let texts: Vec<_> = found.iter().map(describe).collect();
            texts.join("\n") + "\n" + WHERE
        }
    };
    output::print(&text)?;
    Ok(Exit::Success)
}

fn describe(field: &Field) -> String {
    let Field {
        path, class, since, ..
    } = field;
    // Writing to a String cannot fail.
    let mut text = format!("{path}\n  {class} (since {since})\n");
    for value in field.values() {
        let name = value
            .value
            .filter(|value| !value.is_empty())
            .unwrap_or("(not set)");
        let _ = writeln!(text, "  {name:<16} {}", value.class);
    }
    let names: Vec<_> = field.children().map(|field| field.name()).collect();
    if !names.is_empty() {
        let _ = writeln!(text, "  fields: {}", names.join(", "));
    }
    text
}
