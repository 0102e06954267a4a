//! `podvisor validate`: all errors of VMIs and the fields without effect.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::input::{self, Input};
use super::{CommandError, explain, output};
use crate::cli::ValidateArgs;
use crate::exit::Exit;
use crate::logging::LogFormat;
use crate::vmi::{Beside, Manifest, Report};
use crate::{plan, report};

/// Characters of a name that are shown; DNS allows fewer.
const MAX_NAME: usize = 256;

/// The verdict on one machine.
#[derive(Serialize)]
struct Verdict {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Where the machine's object begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    valid: bool,
    /// Why there is no document to speak about.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
    #[serde(flatten)]
    report: Report,
    /// What a run needs besides the VMI.
    needs: Vec<String>,
    #[serde(skip)]
    exit: Exit,
}

/// Prints a verdict on each document.
pub(super) fn validate(args: &ValidateArgs) -> Result<Exit, CommandError> {
    let beside = input::beside(&args.beside)?;
    let judge = |path: &PathBuf| judge(path, args.strict, &beside);
    let judged = args.vmis.iter().flat_map(judge);
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

/// The verdicts on all machines of a file, or of the files of a directory.
fn judge(path: &Path, strict: bool, beside: &Beside) -> Vec<Verdict> {
    match Input::all(path) {
        Ok(inputs) => {
            let mut beside = beside.clone();
            input::add_directory(&inputs, &mut beside);
            let judge = |input| judge_input(input, path, strict, &beside);
            inputs.iter().flat_map(judge).collect()
        }
        Err(error) => vec![Verdict::unreadable(path, error.exit(), error.paragraph())],
    }
}

fn judge_input(input: &Input, path: &Path, strict: bool, beside: &Beside) -> Vec<Verdict> {
    let file = input.path.as_deref().unwrap_or(path);
    match input.machines(strict, beside) {
        // Other files of a directory have no machine.
        Ok(machines) => machines
            .into_iter()
            .filter(|machine| machine.is_known || file == path)
            .map(|machine| Verdict::of(file, machine))
            .collect(),
        Err(error) => {
            let why = error.source().map_or(error.to_string(), report::chain);
            vec![Verdict::unreadable(file, error.exit(), why)]
        }
    }
}

impl Verdict {
    fn of(file: &Path, machine: Manifest) -> Self {
        let (exit, report, needs) = match machine.verdict {
            Ok((vmi, report)) => (Exit::Success, report, plan::needs(&vmi)),
            Err(report) => (Exit::Refused, report, Vec::new()),
        };
        Self {
            kind: machine.is_known.then_some(machine.kind),
            name: machine.name,
            line: machine.line,
            valid: exit == Exit::Success,
            unreadable: None,
            report,
            needs,
            ..Self::unreadable(file, exit, String::new())
        }
    }

    fn unreadable(file: &Path, exit: Exit, why: String) -> Self {
        Self {
            file: file.display().to_string(),
            kind: None,
            name: None,
            line: None,
            valid: false,
            unreadable: Some(why),
            report: Report::default(),
            needs: Vec::new(),
            exit,
        }
    }
}

/// A table of several machines, then what is to be said of each.
fn texts(verdicts: &[Verdict]) -> String {
    let table = if verdicts.len() > 1 {
        table(verdicts)
    } else {
        String::new()
    };
    let text = |verdict: &Verdict| {
        let same = |other: &&Verdict| other.file == verdict.file;
        text(verdict, verdicts.iter().filter(same).count() > 1)
    };
    let mut texts = table + &verdicts.iter().map(text).collect::<String>();
    let has_errors = |verdict: &Verdict| !verdict.report.errors.is_empty();
    if verdicts.iter().any(has_errors) {
        texts += explain::HINT;
        texts.push('\n');
    }
    texts
}

fn table(verdicts: &[Verdict]) -> String {
    let file = |verdict: &Verdict| match verdict.line {
        Some(line) => format!("{}:{line}", verdict.file),
        None => verdict.file.clone(),
    };
    let files: Vec<_> = verdicts.iter().map(file).collect();
    let width = files
        .iter()
        .map(|file| file.chars().count())
        .max()
        .unwrap_or(0);
    let mut table = format!("{:width$}  {:9}  NAME\n", "FILE", "VERDICT");
    for (file, verdict) in files.iter().zip(verdicts) {
        let said = if verdict.valid { "valid" } else { "not valid" };
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{file:width$}  {said:9}  {}", verdict.name());
    }
    table.push('\n');
    table
}

impl Verdict {
    /// The machine's name, harmless for a terminal.
    fn name(&self) -> String {
        let name = self.name.as_deref().unwrap_or("-").escape_debug();
        name.take(MAX_NAME).collect()
    }
}

/// One of several machines of a file has its line and name told.
fn text(verdict: &Verdict, several: bool) -> String {
    let Verdict { file, report, .. } = verdict;
    let valid = if verdict.valid { "valid" } else { "not valid" };
    let mut text = match verdict.line {
        Some(line) if several => format!("{file}:{line} {}: {valid}\n", verdict.name()),
        _ => format!("{file}: {valid}\n"),
    };
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
    for need in &verdict.needs {
        let _ = writeln!(text, "  needs: {need}");
    }
    text
}
