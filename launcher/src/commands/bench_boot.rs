//! `podvisor bench-boot`: how long a machine takes to start, again and again, beside another program if asked for.

mod drawing;
mod round;
mod summary;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use thiserror::Error;

use self::round::{Program, Step};
use self::summary::Series;
use super::{CommandError, output};
use crate::cli::BenchBootArgs;
use crate::exit::Exit;
use crate::logging::LogFormat;
use crate::supervise::Signals;

/// What a kernel and the start of user space say on a console, unless the kernel is told to be quiet.
const USUAL: [&str; 2] = ["Linux version", "as init process"];

/// Starts cannot be timed.
#[derive(Debug, Error)]
pub enum BenchBootError {
    /// A program cannot be run.
    #[error("Cannot run {program}")]
    Run {
        /// Its name.
        program: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It ended before all that it should say was there.
    #[error("{program} ended with {status} before it said {text:?}")]
    Ended {
        /// Its name.
        program: String,
        /// How.
        status: ExitStatus,
        /// What was waited for.
        text: String,
    },
    /// It did not say it in time.
    #[error("{program} did not say {text:?} within {} s", patience.as_secs())]
    Silent {
        /// Its name.
        program: String,
        /// What was waited for.
        text: String,
        /// Time that it had.
        patience: Duration,
    },
    /// It was to run to its end, which was no good one.
    #[error("{program} ended with {status}")]
    Failed {
        /// Its name.
        program: String,
        /// How.
        status: ExitStatus,
    },
    /// A signal wants the end.
    #[error("Stopped by a signal")]
    Stopped,
    /// podvisor ended before its guest ran, and said why.
    #[error("{program} ended with {status} before its guest ran")]
    NoGuest {
        /// Its name.
        program: String,
        /// How.
        status: ExitStatus,
    },
    /// The drawing cannot be written.
    #[error("Cannot write {path:?}")]
    Plot {
        /// Its file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Runs them in turn and prints what they took.
pub(super) fn bench_boot(args: &BenchBootArgs) -> Result<Exit, CommandError> {
    let directory = tempfile::tempdir().map_err(|source| CommandError::System {
        what: "make a directory for traces",
        source,
    })?;
    let mut programs = vec![Program::podvisor(args.run.clone(), directory.path())];
    programs.extend(args.compare.as_ref().map(|command| Program::shell(command)));
    let mut series: Vec<Series> = Vec::new();
    let plot = args.plot.as_ref().map(|path| {
        let fail = |source| BenchBootError::Plot {
            path: path.clone(),
            source,
        };
        let file = File::create(path).map_err(fail)?;
        Ok::<_, BenchBootError>((file, fail))
    });
    let plot = plot.transpose()?;
    let signals = Signals::block().map_err(|source| CommandError::System {
        what: "wait for signals",
        source,
    })?;
    for _ in 0..args.runs {
        for program in &programs {
            let steps = program.time(&args.until, &USUAL, args.timeout, &signals);
            let steps = steps.inspect_err(|_| program.show_log())?;
            for Step { name, took } in steps {
                Series::add(&mut series, &program.name, &name, took);
            }
        }
    }
    series.iter_mut().for_each(Series::summarise);
    match args.output {
        LogFormat::Json => output::print_json(&series)?,
        LogFormat::Text => output::print(&summary::table(&series))?,
    }
    if let Some((mut file, fail)) = plot {
        let drawing = drawing::draw(&series);
        file.write_all(drawing.as_bytes()).map_err(fail)?;
    }
    Ok(Exit::Success)
}
