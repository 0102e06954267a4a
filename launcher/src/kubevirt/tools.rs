//! The other programs that KubeVirt wants in a launcher's image, each by its name: what its pods run beside the
//! launcher (docs/kubevirt.md).

mod container_disk;
mod copy;
mod freezer;
mod launcher;
mod probe;
mod shell;
mod tail;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::report;

/// Names of the programs. Looked up at each start, so without what clap knows.
const NAMES: [&str; 7] = [
    "bash",
    "container-disk",
    "cp",
    "sh",
    "virt-freezer",
    "virt-probe",
    "virt-tail",
];

/// One of the programs, with its arguments.
#[derive(Debug, Parser)]
#[command(multicall = true, disable_help_subcommand = true)]
enum Tool {
    #[command(name = "container-disk")]
    ContainerDisk(container_disk::Arguments),
    #[command(name = "cp")]
    Copy(copy::Arguments),
    #[command(name = "sh", alias = "bash")]
    Shell(shell::Arguments),
    #[command(name = "virt-freezer")]
    Freezer(freezer::Arguments),
    #[command(name = "virt-probe")]
    Probe(probe::Arguments),
    #[command(name = "virt-tail")]
    Tail(tail::Arguments),
}

/// Runs the program that this one was started as; none if that is podvisor itself.
pub fn main(words: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let words: Vec<OsString> = words.collect();
    let program = words.first()?;
    is_name(program).then(|| run(&words).into())
}

/// Whether `program` is the name, or a path, of one of the programs.
fn is_name(program: &OsString) -> bool {
    let name = Path::new(program)
        .file_name()
        .and_then(|name| name.to_str());
    name.is_some_and(|name| NAMES.contains(&name))
}

/// Runs the program that the first word names; its exit status.
fn run(words: &[OsString]) -> u8 {
    let tool = match Tool::try_parse_from(words) {
        Ok(tool) => tool,
        Err(error) => error.exit(),
    };
    match tool {
        Tool::ContainerDisk(arguments) => status(container_disk::run(&arguments)),
        Tool::Copy(arguments) => status(copy::run(&arguments)),
        Tool::Shell(arguments) => shell::run(&arguments),
        Tool::Freezer(arguments) => status(freezer::run(&arguments)),
        Tool::Probe(arguments) => probe::run(&arguments),
        Tool::Tail(arguments) => status(tail::run(&arguments)),
    }
}

/// A line on standard output; nothing if there is nothing to say.
fn print_line(text: &str) {
    if !text.is_empty() {
        // A reader that has gone wanted no more.
        let _ = writeln!(io::stdout(), "{text}");
    }
}

/// A reason is told.
fn status(result: Result<(), impl Error>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            report::print(&report::chain(&error));
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_names_are_those_that_clap_knows() {
        let command = Tool::command();
        command.clone().debug_assert();
        let mut known: Vec<_> = command
            .get_subcommands()
            .flat_map(|tool| std::iter::once(tool.get_name()).chain(tool.get_all_aliases()))
            .collect();
        known.sort_unstable();
        assert_eq!(known, NAMES);
        assert!(is_name(&"/usr/bin/virt-tail".into()));
        assert!(!is_name(&"/usr/bin/podvisor".into()));
        assert!(!is_name(&"virt-launcher".into()));
    }
}
