//! `podvisor validate`: all errors of VMIs and the fields without effect.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::CommandError;
use super::input::Input;
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
}

/// Prints a verdict on each document.
pub(super) fn validate(args: &ValidateArgs) -> Result<Exit, CommandError> {
    let mut verdicts = Vec::new();
    for path in &args.vmis {
        verdicts.push(judge(path)?);
    }
    let print = || match args.output {
        LogFormat::Json => {
            let mut output = io::stdout().lock();
            serde_json::to_writer_pretty(&mut output, &verdicts)?;
            writeln!(output)
        }
        LogFormat::Text => verdicts.iter().try_for_each(print_text),
    };
    print().map_err(|source| CommandError::System {
        what: "print the verdict",
        source,
    })?;
    let valid = verdicts.iter().all(|verdict| verdict.valid);
    Ok(if valid { Exit::Success } else { Exit::Refused })
}

fn judge(path: &Path) -> Result<Verdict, CommandError> {
    let file = path.display().to_string();
    let (unreadable, report) = match Input::read(Some(path))?.parse() {
        Ok((_, report)) | Err(CommandError::Refused { report, .. }) => (None, report),
        Err(CommandError::Document { source, .. }) => {
            (Some(report::chain(&source)), Report::default())
        }
        Err(error) => return Err(error),
    };
    let valid = unreadable.is_none() && report.errors.is_empty();
    Ok(Verdict {
        file,
        valid,
        unreadable,
        report,
    })
}

fn print_text(verdict: &Verdict) -> io::Result<()> {
    let mut output = io::stdout().lock();
    let Verdict {
        file,
        valid,
        unreadable,
        report,
    } = verdict;
    writeln!(
        output,
        "{file}: {}",
        if *valid { "valid" } else { "not valid" }
    )?;
    if let Some(why) = unreadable {
        writeln!(output, "  error: {why}")?;
    }
    for error in &report.errors {
        writeln!(output, "  error: {error}")?;
    }
    for note in &report.notes {
        writeln!(output, "  note: {note}")?;
    }
    Ok(())
}
