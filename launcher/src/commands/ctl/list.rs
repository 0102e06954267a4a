//! Which machines there are, and which one is meant.

use std::fmt::Write;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::super::{CommandError, output};
use super::messages;
use crate::exit::Exit;
use crate::logging::LogFormat;
use crate::machines::{self, RunningMachine};

/// How long a launcher may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// A machine and what its launcher says of it.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    machine: RunningMachine,
    /// None if it says nothing.
    state: Option<String>,
}

/// Prints the machines of this user that run.
pub(super) fn list(format: LogFormat) -> Result<Exit, CommandError> {
    let listed = running().into_iter().map(|machine| Listed {
        state: state(&machine).unwrap_or_default(),
        machine,
    });
    let listed: Vec<_> = listed.collect();
    match format {
        LogFormat::Json => output::print_json(&listed)?,
        LogFormat::Text => output::print(&table(&listed))?,
    }
    Ok(Exit::Success)
}

/// The socket of the machine called `vm` or that listens there, or of the only one.
pub(super) fn socket(vm: Option<&str>) -> Result<PathBuf, CommandError> {
    match vm {
        Some(path) if path.contains('/') => Ok(path.into()),
        name => machine(name).map(|machine| machine.socket),
    }
}

/// The machine called `name`, or the only one.
pub(in super::super) fn machine(name: Option<&str>) -> Result<RunningMachine, CommandError> {
    match name {
        Some(name) => {
            let found =
                machines::directory().and_then(|directory| machines::find(&directory, name));
            found.ok_or_else(|| CommandError::NoSuchMachine(name.to_owned()))
        }
        None => match running().as_slice() {
            [] => Err(CommandError::NothingRuns),
            [machine] => Ok(machine.clone()),
            machines => {
                let names = machines.iter().map(|machine| machine.name.clone());
                Err(CommandError::WhichRunning(names.collect()))
            }
        },
    }
}

fn running() -> Vec<RunningMachine> {
    machines::directory().map_or_else(Vec::new, |directory| machines::running(&directory))
}

/// What a launcher greets with.
fn state(machine: &RunningMachine) -> io::Result<Option<String>> {
    let stream = UnixStream::connect(&machine.socket)?;
    stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
    let Some(hello) = messages(stream).next() else {
        return Ok(None);
    };
    let (_, hello) = hello?;
    Ok(hello["state"].as_str().map(str::to_owned))
}

fn table(listed: &[Listed]) -> String {
    let width = |name: &str| name.chars().count();
    let names = listed.iter().map(|one| width(&one.machine.name));
    let width = names.chain([width("NAME")]).max().unwrap_or_default();
    let mut text = String::new();
    let mut line = |name: &str, state: &str, socket: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:width$}  {state:12}  {socket}");
    };
    line("NAME", "STATE", "SOCKET");
    for Listed { machine, state } in listed {
        let state = state.as_deref().unwrap_or("silent");
        line(&machine.name, state, &machine.socket.to_string_lossy());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_listed_by_name() {
        let listed = |name: &str, state: Option<&str>| Listed {
            machine: RunningMachine {
                name: name.to_owned(),
                socket: format!("/run/{name}.sock").into(),
            },
            state: state.map(str::to_owned),
        };
        let text = table(&[listed("database", Some("running")), listed("x", None)]);
        let expected = "\
NAME      STATE         SOCKET
database  running       /run/database.sock
x         silent        /run/x.sock
";
        assert_eq!(text, expected);
    }
}
