//! The subcommands: each takes its arguments and returns an exit status or an error.

mod check_host;
mod ctl;
mod error;
mod inherited;
mod input;
mod net;
mod plan;
mod run;
mod seccomp;
mod validate;

use crate::cli::{Cli, Command, NetCommand, SeccompCommand};
use crate::exit::Exit;

pub use self::error::CommandError;

/// Does what the command line says.
pub fn execute(cli: Cli) -> Result<Exit, CommandError> {
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Validate(args) => validate::validate(&args),
        Command::Plan(args) => plan::plan(&args),
        Command::Ctl(args) => ctl::ctl(&args),
        Command::CheckHost { output } => check_host::check_host(output),
        Command::Net(NetCommand::Show(args)) => net::show(&args),
        Command::Seccomp(SeccompCommand::Show { role }) => seccomp::show(role.as_deref()),
    }
}
