//! `virt-probe`: kubelet runs it in the launcher's container for probes of the kinds `exec` and
//! `guestAgentPing`, which the guest's agent answers.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::super::messages::{ExecRequest, ExecResponse, GuestPingRequest, TextResponse};
use super::launcher::{self, AskError, Launcher, SHORT, check, wait};
use crate::report;

const EXEC: &str = "Exec";

/// Of an `exec` that was not answered.
const UNANSWERED: u8 = 255;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The launcher's socket.
    #[arg(long, value_name = "PATH", default_value = launcher::SOCKET)]
    socket: PathBuf,
    /// Nothing: the pod has one machine.
    #[arg(long = "domainName", value_name = "NAMESPACE_NAME")]
    domain: Option<String>,
    /// What to run in the guest.
    #[arg(long, value_name = "PROGRAM", default_value = "")]
    command: String,
    /// How long the guest may take, seconds.
    #[arg(long = "timeoutSeconds", value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(i32).range(0..))]
    timeout: i32,
    /// Only ask whether the agent is there.
    #[arg(long = "guestAgentPing")]
    ping: bool,
    /// Nothing: this program needs no profile.
    #[arg(long = "memProfile", value_name = "PATH")]
    profile: Option<PathBuf>,
    /// Nothing: there is no more to say.
    #[arg(short, long = "v", value_name = "LEVEL")]
    verbosity: Option<String>,
    /// The command's arguments.
    arguments: Vec<String>,
}

/// Asks; the exit status is that of the guest's command.
pub(super) fn run(arguments: &Arguments) -> u8 {
    let answer = match arguments.ping {
        true => wait(ping(arguments)).map(|()| 0),
        false => wait(exec(arguments)),
    };
    answer.unwrap_or_else(|error| {
        report::print(&report::chain(&error));
        match error {
            AskError::Call { method: EXEC, .. }
            | AskError::Late(EXEC)
            | AskError::Refused { method: EXEC, .. } => UNANSWERED,
            _ => 1,
        }
    })
}

/// How long the launcher may take: the guest's time and some of its own.
fn patience(arguments: &Arguments) -> Duration {
    Duration::from_secs(arguments.timeout.unsigned_abs().into()) + SHORT
}

async fn ping(arguments: &Arguments) -> Result<(), AskError> {
    let mut launcher = Launcher::connect(&arguments.socket).await?;
    let request = GuestPingRequest {
        timeout_seconds: arguments.timeout,
    };
    let method = "GuestPing";
    let answer: TextResponse = launcher.call(method, &request, patience(arguments)).await?;
    check(method, answer.response)
}

async fn exec(arguments: &Arguments) -> Result<u8, AskError> {
    let mut launcher = Launcher::connect(&arguments.socket).await?;
    let request = ExecRequest {
        program: arguments.command.clone(),
        arguments: arguments.arguments.clone(),
        timeout_seconds: arguments.timeout,
    };
    let answer: ExecResponse = launcher.call(EXEC, &request, patience(arguments)).await?;
    super::print_line(&answer.output);
    check(EXEC, answer.response)?;
    // As a process's status is: the lowest byte.
    Ok(answer.code.to_le_bytes()[0])
}
