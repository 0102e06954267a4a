//! `podvisor man`: manual pages, made of what `--help` says.

use std::path::Path;

use clap::CommandFactory;

use super::CommandError;
use crate::cli::Cli;
use crate::exit::Exit;

/// Writes a page for podvisor and one for each of its commands.
pub(super) fn man(directory: &Path) -> Result<Exit, CommandError> {
    let written = clap_mangen::generate_to(Cli::command(), directory);
    written.map_err(|source| CommandError::Man {
        directory: directory.to_owned(),
        source,
    })?;
    Ok(Exit::Success)
}
