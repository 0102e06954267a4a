//! `podvisor ctl`: one command to a running machine.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

use super::CommandError;
use crate::cli::{CtlArgs, CtlCommand};
use crate::exit::Exit;
use crate::supervise::control::Request;

/// How long a machine may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Sends the command and waits for the event that answers it.
pub(super) fn ctl(args: &CtlArgs) -> Result<Exit, CommandError> {
    let fail = |source| CommandError::Control {
        path: args.socket.clone(),
        source,
    };
    let (request, answer) = request(args.command);
    let stream = connect(args, &request).map_err(fail)?;
    let Some(answer) = answer else {
        return Ok(Exit::Success);
    };
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(fail)?;
        let message: Value = serde_json::from_str(&line).map_err(|error| fail(error.into()))?;
        match message["event"].as_str() {
            Some("error") => return Err(CommandError::ControlRefused(line)),
            Some(event) if event == answer => {
                let printed = writeln!(io::stdout().lock(), "{line}");
                return printed
                    .map(|()| Exit::Success)
                    .map_err(|source| CommandError::System {
                        what: "print the answer",
                        source,
                    });
            }
            _ => {}
        }
    }
    if request == Request::Stop {
        return Ok(Exit::Success);
    }
    Err(CommandError::ControlRefused("its run ended".to_owned()))
}

fn connect(args: &CtlArgs, request: &Request) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(&args.socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    Ok(stream)
}

/// What to send and the event to wait for.
fn request(command: CtlCommand) -> (Request, Option<&'static str>) {
    match command {
        CtlCommand::Pause => (Request::Pause, Some("paused")),
        CtlCommand::Resume => (Request::Resume, Some("running")),
        CtlCommand::PowerButton => (Request::PowerButton, None),
        CtlCommand::Reset => (Request::Reset, Some("reset")),
        // Answered by the end of the connection.
        CtlCommand::Stop => (Request::Stop, Some("stopped")),
        CtlCommand::Stats => (Request::Stats, Some("stats")),
        CtlCommand::Status => (Request::Status, Some("status")),
    }
}
