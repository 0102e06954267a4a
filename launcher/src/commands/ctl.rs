//! `podvisor ctl`: one command to a running machine.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Map, Value};
use vmm::control::{Call, Command, Reply, VERSION, Verdict};

use super::{CommandError, output};
use crate::cli::CtlArgs;
use crate::exit::Exit;

/// How long a machine may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Number of the one call.
const ID: u64 = 1;

/// Sends the command, waits for its answer and prints it. [`Command::Stop`] is done when the run has
/// ended.
pub(super) fn ctl(args: &CtlArgs) -> Result<Exit, CommandError> {
    let fail = |source| CommandError::Control {
        path: args.socket.clone(),
        source,
    };
    let command = command(args).map_err(CommandError::NoSuchCommand)?;
    let waits_for_end = command == Command::Stop;
    let stream = send(args, command).map_err(fail)?;
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(fail)?;
        let message: Value = serde_json::from_str(&line).map_err(|error| fail(error.into()))?;
        if message["event"] == "hello" && message["version"] != VERSION {
            return Err(CommandError::ControlVersion {
                theirs: message["version"].to_string(),
            });
        }
        let Ok(reply) = serde_json::from_value::<Reply>(message) else {
            continue;
        };
        if let Verdict::Error(refusal) = reply.verdict {
            return Err(CommandError::ControlRefused(refusal.to_string()));
        }
        output::print(&(line + "\n"))?;
        if !waits_for_end {
            return Ok(Exit::Success);
        }
    }
    match waits_for_end {
        true => Ok(Exit::Success),
        false => Err(CommandError::ControlRefused("its run ended".to_owned())),
    }
}

fn send(args: &CtlArgs, command: Command) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(&args.socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_vec(&Call { id: ID, command })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    Ok(stream)
}

/// The command that the words of the command line are, as clients write it in JSON.
fn command(args: &CtlArgs) -> serde_json::Result<Command> {
    let mut object: Map<String, Value> = args.arguments.iter().cloned().collect();
    object.insert("command".to_owned(), args.command.clone().into());
    serde_json::from_value(object.into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, CliCommand};

    fn parse(words: &[&str]) -> serde_json::Result<Command> {
        let words = ["podvisor", "ctl", "/run/vm.sock"].iter().chain(words);
        let cli = Cli::try_parse_from(words).expect("usage");
        match cli.command {
            CliCommand::Ctl(args) => command(&args),
            _ => panic!("ctl"),
        }
    }

    #[test]
    fn words_become_a_command() {
        assert_eq!(parse(&["pause"]).expect("a command"), Command::Pause);
        let (nic, up) = ("default".to_owned(), false);
        let words = ["setLink", "nic=default", "up=false"];
        assert_eq!(
            parse(&words).expect("a command"),
            Command::SetLink { nic, up }
        );
        for wrong in [
            &["fly"][..],
            &["setLink"],
            &["setLink", "nic=x", "up=maybe"],
        ] {
            parse(wrong).expect_err(&wrong.join(" "));
        }
    }
}
