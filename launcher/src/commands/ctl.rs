//! `podvisor ctl`: one command to a running machine.

mod snapshot;

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};
use vmm::control::{Call, Command, Reply, VERSION, Verdict};

use self::snapshot::SnapshotFiles;
use super::{CommandError, output};
use crate::cli::{CtlArgs, CtlArgument};
use crate::exit::Exit;

/// How long a machine may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The same of one that writes its RAM to a file.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3600);

/// Number of the one call.
const ID: u64 = 1;

/// Sends the command, waits for its answer and prints it. [`Command::Stop`] is done when the run has
/// ended.
pub(super) fn ctl(args: &CtlArgs) -> Result<Exit, CommandError> {
    let (command, directory) = command(args).map_err(CommandError::NoSuchCommand)?;
    let Some(directory) = directory else {
        return talk(args, command, None);
    };
    let directory = PathBuf::from(directory);
    let fail = |source| CommandError::Snapshot {
        directory: directory.clone(),
        source,
    };
    let files = SnapshotFiles::create(&directory).map_err(fail)?;
    let done = talk(args, command, Some(&files));
    match done {
        Ok(_) => files.keep().map_err(fail)?,
        Err(_) => files.discard(),
    }
    done
}

/// Makes the call and prints its answer.
fn talk(
    args: &CtlArgs,
    command: Command,
    files: Option<&SnapshotFiles<'_>>,
) -> Result<Exit, CommandError> {
    let fail = |source| CommandError::Control {
        path: args.socket.clone(),
        source,
    };
    let waits_for_end = matches!(command, Command::Stop | Command::Snapshot { stop: true });
    let stream = send(args, command, files).map_err(fail)?;
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

fn send(
    args: &CtlArgs,
    command: Command,
    files: Option<&SnapshotFiles<'_>>,
) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(&args.socket)?;
    let mut line = serde_json::to_vec(&Call { id: ID, command })?;
    line.push(b'\n');
    match files {
        Some(files) => {
            stream.set_read_timeout(Some(SNAPSHOT_TIMEOUT))?;
            files.send(&stream, &line)?;
        }
        None => {
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(&line)?;
        }
    }
    Ok(stream)
}

/// The command that the words of the command line are, as clients write it in JSON, and a snapshot's
/// directory, which is not the machine's to know.
fn command(args: &CtlArgs) -> serde_json::Result<(Command, Option<String>)> {
    let mut object = Map::new();
    let mut words = Vec::new();
    for argument in &args.arguments {
        match argument.clone() {
            CtlArgument::Field(name, value) => drop(object.insert(name, value)),
            CtlArgument::Word(word) => words.push(word),
        }
    }
    if args.stop {
        object.insert("stop".to_owned(), true.into());
    }
    object.insert("command".to_owned(), args.command.clone().into());
    let command: Command = serde_json::from_value(object.into())?;
    let is_snapshot = matches!(command, Command::Snapshot { .. });
    if args.stop && !is_snapshot {
        return Err(serde::de::Error::custom("only a snapshot takes --stop"));
    }
    let wanted = usize::from(is_snapshot);
    if words.len() != wanted {
        let text = match wanted {
            0 => "not of the form NAME=VALUE",
            _ => "a snapshot needs one directory",
        };
        return Err(serde::de::Error::custom(text));
    }
    Ok((command, words.pop()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, CliCommand};

    fn parse(words: &[&str]) -> serde_json::Result<(Command, Option<String>)> {
        let words = ["podvisor", "ctl", "/run/vm.sock"].iter().chain(words);
        let cli = Cli::try_parse_from(words).expect("usage");
        match cli.command {
            CliCommand::Ctl(args) => command(&args),
            _ => panic!("ctl"),
        }
    }

    #[test]
    fn words_become_a_command() {
        let pause = parse(&["pause"]).expect("a command");
        assert_eq!(pause, (Command::Pause, None));
        let (nic, up) = ("default".to_owned(), false);
        let words = ["setLink", "nic=default", "up=false"];
        assert_eq!(
            parse(&words).expect("a command"),
            (Command::SetLink { nic, up }, None)
        );
        let snapshot = parse(&["snapshot", "/tmp/x", "--stop"]).expect("a command");
        let directory = Some("/tmp/x".to_owned());
        assert_eq!(snapshot, (Command::Snapshot { stop: true }, directory));
        for wrong in [
            &["fly"][..],
            &["setLink"],
            &["setLink", "nic=x", "up=maybe"],
            &["pause", "/tmp/x"],
            &["pause", "--stop"],
            &["snapshot"],
            &["snapshot", "/tmp/x", "/tmp/y"],
        ] {
            parse(wrong).expect_err(&wrong.join(" "));
        }
    }
}
