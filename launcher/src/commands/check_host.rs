//! `podvisor check-host`: what this host or pod offers and lacks, and what each thing is for.

mod checks;

use std::fmt::Write as _;

use serde::Serialize;

use super::{CommandError, output};
use crate::exit::Exit;
use crate::logging::LogFormat;

/// How a thing was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Finding {
    /// There, and enough.
    Ok,
    /// Not there, or not enough.
    Lacking,
    /// Nothing that can be enough or not.
    Info,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    name: &'static str,
    state: Finding,
    /// A default VMI does not run without it.
    required: bool,
    /// What is there, or why it is not.
    found: String,
    needed_for: &'static str,
}

/// Looks and tells. Success only if a VMI with the default devices (a disk, the pod network) would
/// run.
pub(super) fn check_host(format: LogFormat) -> Result<Exit, CommandError> {
    let checks = checks::all();
    let text = match format {
        LogFormat::Json => json(&checks),
        LogFormat::Text => text(&checks),
    };
    output::print(&text)?;
    Ok(verdict(&checks))
}

fn verdict(checks: &[Check]) -> Exit {
    let lacking = |check: &Check| check.required && check.state == Finding::Lacking;
    match checks.iter().any(lacking) {
        true => Exit::HostResource,
        false => Exit::Success,
    }
}

fn json(checks: &[Check]) -> String {
    // Strings and flags only: nothing that JSON cannot say.
    let mut text = serde_json::to_string_pretty(checks).unwrap_or_default();
    text.push('\n');
    text
}

fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let state = match (check.state, check.required) {
            (Finding::Ok, _) => "ok",
            (Finding::Lacking, true) => "MISSING",
            (Finding::Lacking, false) => "without",
            (Finding::Info, _) => "info",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{state:<8} {:<20} {}", check.name, check.found);
        let _ = writeln!(text, "{:29} for {}", "", check.needed_for);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(state: Finding, required: bool) -> Check {
        Check {
            name: "thing",
            state,
            required,
            found: "found".to_owned(),
            needed_for: "a test",
        }
    }

    #[test]
    fn only_what_is_required_decides() {
        let fine = [check(Finding::Ok, true), check(Finding::Lacking, false)];
        assert_eq!(verdict(&fine), Exit::Success);
        assert_eq!(
            verdict(&[check(Finding::Lacking, true)]),
            Exit::HostResource
        );
        let told = text(&[
            check(Finding::Lacking, true),
            check(Finding::Lacking, false),
        ]);
        assert!(told.starts_with("MISSING  thing") && told.contains("\nwithout  thing"));
    }
}
