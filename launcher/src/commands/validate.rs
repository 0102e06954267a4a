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
use crate::vmi::{Manifest, Report};

/// The verdict on one document.
#[derive(Serialize)]
struct Verdict {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
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
    let judged = args.vmis.iter().flat_map(|path| judge(path, args.strict));
    let verdicts: Vec<_> = judged.collect();
    match args.output {
        LogFormat::Json => output::print_json(&verdicts)?,
        LogFormat::Text => output::print(&texts(&verdicts))?,
    }
    let worst = verdicts.iter().map(|verdict| verdict.exit);
    Ok(worst
        .max_by_key(|exit| *exit as u8)
        .unwrap_or(Exit::Success))
}

/// The verdicts on all machines of a file.
fn judge(path: &Path, strict: bool) -> Vec<Verdict> {
    let file = path.display().to_string();
    let read = Input::read(Some(path)).and_then(|input| input.machines(strict));
    let verdict = |machine: Manifest| {
        let (exit, report) = match machine.verdict {
            Ok((_, report)) => (Exit::Success, report),
            Err(report) => (Exit::Refused, report),
        };
        Verdict {
            file: file.clone(),
            kind: Some(machine.kind),
            name: machine.name,
            valid: exit == Exit::Success,
            unreadable: None,
            report,
            exit,
        }
    };
    let why = match read {
        Ok(machines) => return machines.into_iter().map(verdict).collect(),
        Err(CommandError::Document { source, .. }) => (Exit::Refused, report::chain(&source)),
        Err(error) => (error.exit(), error.paragraph()),
    };
    vec![Verdict {
        file,
        kind: None,
        name: None,
        valid: false,
        unreadable: Some(why.1),
        report: Report::default(),
        exit: why.0,
    }]
}

fn texts(verdicts: &[Verdict]) -> String {
    let text = |verdict: &Verdict| {
        let same = |other: &&Verdict| other.file == verdict.file;
        text(verdict, verdicts.iter().filter(same).count() > 1)
    };
    verdicts.iter().map(text).collect()
}

/// A file with several machines needs their names told.
fn text(verdict: &Verdict, named: bool) -> String {
    let Verdict { file, report, .. } = verdict;
    let kind = verdict.kind.unwrap_or_default();
    let name = verdict
        .name
        .as_deref()
        .unwrap_or("(no name)")
        .escape_debug();
    let file = match named {
        true => format!("{file}: {kind} {name}"),
        false => file.clone(),
    };
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
