//! `podvisor completions`: what a shell reads to complete podvisor's command line.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::{CommandError, output};
use crate::cli::Cli;
use crate::exit::Exit;

/// Prints it.
pub(super) fn completions(shell: Shell) -> Result<Exit, CommandError> {
    let mut text = Vec::new();
    generate(shell, &mut Cli::command(), "podvisor", &mut text);
    output::print(&text)?;
    Ok(Exit::Success)
}
