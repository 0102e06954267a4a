//! The subcommands: each takes its arguments and returns an exit status or an error.

mod bench_boot;
mod check_host;
mod cleanup;
mod completions;
mod crash_dump;
mod ctl;
mod customize;
mod detach;
mod error;
mod explain;
mod image;
mod inherited;
mod input;
mod man;
mod net;
mod new;
mod node_info;
mod output;
mod plan;
mod progress;
mod run;
mod seccomp;
mod ssh;
mod validate;

use crate::cli::{Cli, CliCommand, ImageCommand, NetCommand, SeccompCommand};
use crate::exit::Exit;

pub use self::customize::told_by_guest;
pub use self::error::CommandError;
pub(crate) use self::run::prepare_network as machine_network;

/// Does what the command line says.
pub fn execute(cli: Cli) -> Result<Exit, CommandError> {
    match cli.command {
        CliCommand::Run(args) if args.dry_run => plan::plan(&args.machine),
        CliCommand::Run(args) if args.detach && !args.detached => detach::detach(&args),
        CliCommand::Run(args) => run::run(&args),
        CliCommand::Validate(args) => validate::validate(&args),
        CliCommand::Explain { field } => explain::explain(field.as_deref()),
        CliCommand::Plan(args) => plan::plan(&args),
        CliCommand::New(args) => new::new(&args),
        CliCommand::Customize(args) => customize::customize(&args),
        CliCommand::BenchBoot(args) => bench_boot::bench_boot(&args),
        CliCommand::Ctl(args) => ctl::ctl(&args),
        CliCommand::Ssh(args) => ssh::ssh(&args),
        CliCommand::Cleanup(args) => cleanup::cleanup(&args),
        CliCommand::Image(ImageCommand::Inspect(args)) => image::inspect(&args),
        CliCommand::Image(ImageCommand::Gc(args)) => image::gc(&args),
        CliCommand::CheckHost { output } => check_host::check_host(output),
        CliCommand::Man { directory } => man::man(&directory),
        CliCommand::Completions { shell } => completions::completions(shell),
        CliCommand::NodeInfo { output } => node_info::node_info(output),
        CliCommand::Net(NetCommand::Show(args)) => net::show(&args),
        CliCommand::Seccomp(SeccompCommand::Show { role }) => seccomp::show(role.as_deref()),
    }
}
