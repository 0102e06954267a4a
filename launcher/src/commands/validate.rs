//! `podvisor validate`: all errors of VMIs and the fields without effect.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::input::Input;
use super::{CommandError, output};
use crate::cli::ValidateArgs;
use crate::exit::Exit;
use crate::logging::LogFormat;
use crate::report;
use crate::vmi::Report;

/// The verdict on one document.
#[derive(Serialize)]
struct Verdict {
    file: String,
    valid: bool,
    /// Why there is no document to speak about.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
    #[serde(flatten)]
    report: Report,
    #[serde(skip)]
    exit: Exit,
}

/// Prints a verdict on each document.
pub(super) fn validate(args: &ValidateArgs) -> Result<Exit, CommandError> {
    let verdicts: Vec<_> = args.vmis.iter().map(|path| judge(path)).collect();
    match args.output {
        LogFormat::Json => output::print_json(&verdicts)?,
        LogFormat::Text => output::print(&verdicts.iter().map(text).collect::<String>())?,
    }
    let worst = verdicts.iter().map(|verdict| verdict.exit);
    Ok(worst
        .max_by_key(|exit| *exit as u8)
        .unwrap_or(Exit::Success))
}

fn judge(path: &Path) -> Verdict {
    let judged = Input::read(Some(path)).and_then(|input| input.parse());
    let (exit, unreadable, report) = match judged {
        Ok((_, report)) => (Exit::Success, None, report),
        Err(CommandError::Refused { report, .. }) => (Exit::Refused, None, report),
        Err(CommandError::Document { source, .. }) => (
            Exit::Refused,
            Some(report::chain(&source)),
            Report::default(),
        ),
        Err(error) => (error.exit(), Some(error.paragraph()), Report::default()),
    };
    Verdict {
        file: path.display().to_string(),
        valid: exit == Exit::Success,
        unreadable,
        report,
        exit,
    }
}

fn text(verdict: &Verdict) -> String {
    let Verdict { file, report, .. } = verdict;
    let valid = if verdict.valid { "valid" } else { "not valid" };
    let mut text = format!("{file}: {valid}\n");
    // Writing to a String cannot fail.
    if let Some(why) = &verdict.unreadable {
        let _ = writeln!(text, "  error: {why}");
    }
    for error in &report.errors {
        let _ = writeln!(text, "  error: {error}");
    }
    for note in &report.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}
