//! From the words of a command line to what they say.

use std::ffi::OsString;

use clap::{Args, Command, FromArgMatches, Parser};

use super::{Cli, CliCommand, RunArgs};

impl Cli {
    /// What the words of a command line say, the program's name first.
    ///
    /// `run` has its own arguments made and nothing else: those of all commands take a tenth of a
    /// start. What it cannot make sense of, the whole says.
    ///
    /// # Errors
    /// Usage, help and version, in clap's words.
    pub fn read(words: Vec<OsString>) -> Result<Self, clap::Error> {
        if words.get(1).is_some_and(|word| word == "run")
            && let Some(run) = RunArgs::read(&words[1..])
        {
            let command = CliCommand::Run(Box::new(run));
            return Ok(Self { command });
        }
        Self::try_parse_from(words)
    }
}

impl RunArgs {
    /// The arguments of a valid `run`, which is the first of the words.
    fn read(words: &[OsString]) -> Option<Self> {
        let command = Self::augment_args(Command::new("run"));
        let matches = command.try_get_matches_from(words).ok()?;
        Self::from_arg_matches(&matches).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Cli, String> {
        let words = ["podvisor"].iter().chain(words);
        Cli::read(words.map(Into::into).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_run_is_read_as_among_all_commands() {
        let words = [
            "podvisor", "run", "vmi.yaml", "--kernel", "k", "--volume", "a=b",
        ];
        let whole = Cli::try_parse_from(words).expect("usage");
        let alone = read(&words[1..]).expect("usage");
        assert_eq!(format!("{alone:?}"), format!("{whole:?}"));
    }

    #[test]
    fn what_is_no_run_is_told_by_the_whole() {
        let usage = read(&["run", "--no-such"]).expect_err("usage");
        assert!(usage.contains("Usage: podvisor run"), "{usage}");
        let help = read(&["run", "--help"]).expect_err("help");
        assert!(help.contains("Usage: podvisor run"), "{help}");
        assert!(read(&["ran"]).expect_err("usage").contains("'run'"));
        assert!(read(&["check-host"]).is_ok());
    }
}
