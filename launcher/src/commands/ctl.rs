//! `podvisor ctl`: one command to a running machine.

mod attach;
mod console;
mod exec;
mod files;
mod list;

use std::fmt::Write;
use std::io::{self, BufRead, BufReader, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use devices::virtio::net::NetCommand;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Deserialize;
use serde::de::Error;
use serde_json::{Map, Value};
use vmm::control::{Answer, Call, Command, Reply, VERSION, Verdict};

use self::attach::{NewDisk, NewNic};
pub(super) use self::list::machine as running;
use super::{CommandError, output};
use crate::cli::CtlArgs;
use crate::exit::Exit;
use crate::logging::LogFormat;
use crate::metrics::{self, Labels};
use crate::opener::ToOpen;
use crate::registers;
use crate::supervise::Ends;
use crate::supervise::control::Line;

/// How long a machine may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The same of one that writes its RAM to a file.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3600);

/// Most descriptors that go with a call.
const MAX_DESCRIPTORS: usize = 2;

/// All commands: errands of `ctl` itself, and calls of clients.
const NAMES: &str = "list, events, console, console-log, exec, metrics, setLink, status, stats, registers, pause, resume, reset, \
     powerButton, reboot, stop, device, attach, detach, dump, snapshot";

/// Number of the one call.
const ID: u64 = 1;

/// What the words of a command line ask for.
#[derive(Debug, PartialEq)]
enum Errand {
    /// What machines there are.
    List,
    /// To see what happens.
    Events,
    /// To sit at the console.
    Console,
    /// To have a program run in the guest.
    Exec(Vec<String>),
    /// A call.
    Call(Command),
    /// One that comes with the files of a snapshot in this directory.
    Snapshot(Command, PathBuf),
    /// One that comes with a new file.
    Dump(Command, PathBuf),
    /// What the guest has written to its serial console, which is in a file.
    ConsoleLog,
    /// One that adds a disk, with its image.
    Attach(NewDisk),
    /// One that adds a NIC, whose TAP the launcher has opened.
    AttachNic(Box<NewNic>),
    /// One for counters, which are shown as Prometheus has them, with these labels.
    Metrics(Labels),
}

/// Sends the command, waits for its answer and prints it. [`Command::Stop`] is done when the run has
/// ended.
pub(super) fn ctl(args: &CtlArgs) -> Result<Exit, CommandError> {
    let errand = errand(args).map_err(CommandError::NoSuchCommand)?;
    let machine = || list::socket(args.vm.as_deref()).map(Machine);
    match errand {
        Errand::List => list::list(args.output),
        Errand::ConsoleLog => console::print_log(args.vm.as_deref()),
        Errand::Events => machine()?.watch(),
        Errand::Console => console::sit_at(&machine()?.console()?),
        Errand::Exec(words) => exec::run(&machine()?.guest_agent()?, &words),
        Errand::Call(command) => machine()?.talk(command, &[], |line, answer| {
            shown(args.output, line, answer)
        }),
        Errand::Snapshot(command, directory) => machine()?.snapshot(command, &directory),
        Errand::Dump(command, path) => machine()?.dump(command, &path),
        Errand::Attach(disk) => {
            let machine = machine()?;
            let (command, image) = disk.open()?;
            machine.talk(command, &[image.as_fd()], as_it_came)
        }
        Errand::AttachNic(nic) => {
            let machine = machine()?;
            let (command, files, tap) = nic.open()?;
            let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            machine.talk_and_open(command, &files, Some(ToOpen::Tap(tap)), as_it_came)
        }
        Errand::Metrics(labels) => machine()?.talk(Command::Stats, &[], |_, answer| {
            let stats = answer.stats.as_deref();
            stats.map_or_else(String::new, |stats| metrics::text(stats, &labels))
        }),
    }
}

/// The line of an answer, for people to read.
fn as_it_came(line: &str, _: &Answer) -> String {
    format!("{line}\n")
}

/// The line of an answer, but of registers, which people read.
fn shown(format: LogFormat, line: &str, answer: &Answer) -> String {
    let (LogFormat::Text, Some(vcpus)) = (format, &answer.registers) else {
        return as_it_came(line, answer);
    };
    let mut text = String::new();
    for vcpu in vcpus {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "vCPU {}", vcpu.vcpu);
        let _ = registers::write(
            &mut text,
            vcpu.instruction_pointer,
            &vcpu.instruction,
            &vcpu.registers,
        );
        text.push('\n');
    }
    text
}

/// A machine, by its control socket.
struct Machine(PathBuf);

impl Machine {
    fn fail(&self, source: io::Error) -> CommandError {
        CommandError::Control {
            path: self.0.clone(),
            source,
        }
    }

    /// Makes the call and prints what `show` makes of its answer.
    fn talk(
        &self,
        command: Command,
        descriptors: &[BorrowedFd<'_>],
        show: impl FnMut(&str, &Answer) -> String,
    ) -> Result<Exit, CommandError> {
        self.talk_and_open(command, descriptors, None, show)
    }

    /// The same of a call for which the launcher is to have something opened.
    fn talk_and_open(
        &self,
        command: Command,
        descriptors: &[BorrowedFd<'_>],
        open: Option<ToOpen>,
        mut show: impl FnMut(&str, &Answer) -> String,
    ) -> Result<Exit, CommandError> {
        let waits_for_end = matches!(command, Command::Stop | Command::Snapshot { stop: true });
        let stream = self.connect()?;
        send(&stream, command, descriptors, open).map_err(|error| self.fail(error))?;
        for message in self.messages(stream) {
            let (line, message) = message?;
            let Ok(reply) = serde_json::from_value::<Reply>(message) else {
                continue;
            };
            match reply.verdict {
                Verdict::Result(answer) => output::print(&show(&line, &answer))?,
                Verdict::Error(refusal) => {
                    return Err(CommandError::ControlRefused(refusal.to_string()));
                }
            }
            if !waits_for_end {
                return Ok(Exit::Success);
            }
        }
        match waits_for_end {
            true => Ok(Exit::Success),
            false => Err(CommandError::ControlRefused("its run ended".to_owned())),
        }
    }

    fn console(&self) -> Result<PathBuf, CommandError> {
        self.ends()?.console.ok_or(CommandError::NoEnd {
            what: "socket for its console",
            way_out: "Start it with --console unix:PATH.",
        })
    }

    fn guest_agent(&self) -> Result<PathBuf, CommandError> {
        self.ends()?.guest_agent.ok_or(CommandError::NoEnd {
            what: "socket for its guest's agent",
            way_out: "Start it with --guest-agent unix:PATH; under KubeVirt the agent is virt-handler's.",
        })
    }

    /// Where the machine has other sockets, as its launcher says in its greeting.
    fn ends(&self) -> Result<Ends, CommandError> {
        let stream = self.connect()?;
        let patience = stream.set_read_timeout(Some(TIMEOUT));
        patience.map_err(|error| self.fail(error))?;
        let nothing = || Err(self.fail(io::ErrorKind::UnexpectedEof.into()));
        let (_, hello) = self.messages(stream).next().unwrap_or_else(nothing)?;
        serde_json::from_value(hello).map_err(|error| self.fail(error.into()))
    }

    /// Prints events to the end of the run.
    fn watch(&self) -> Result<Exit, CommandError> {
        for message in self.messages(self.connect()?) {
            let (line, _) = message?;
            output::print(&(line + "\n"))?;
        }
        Ok(Exit::Success)
    }

    fn connect(&self) -> Result<UnixStream, CommandError> {
        UnixStream::connect(&self.0).map_err(|error| self.fail(error))
    }

    /// What its launcher says, which is to be of our version.
    fn messages(
        &self,
        stream: UnixStream,
    ) -> impl Iterator<Item = Result<(String, Value), CommandError>> {
        messages(stream).map(|message| {
            let (line, message) = message.map_err(|error| self.fail(error))?;
            check_version(&message)?;
            Ok((line, message))
        })
    }
}

/// What a launcher says, as it came and as JSON.
fn messages(stream: UnixStream) -> impl Iterator<Item = io::Result<(String, Value)>> {
    BufReader::new(stream).lines().map(|line| {
        let line = line?;
        let message = serde_json::from_str(&line)?;
        Ok((line, message))
    })
}

/// Who speaks another version says so first.
fn check_version(message: &Value) -> Result<(), CommandError> {
    match message["event"] == "hello" && message["version"] != VERSION {
        true => Err(CommandError::ControlVersion {
            theirs: message["version"].to_string(),
        }),
        false => Ok(()),
    }
}

/// How long the machine may take to answer.
fn patience(command: &Command) -> Duration {
    match command {
        // It writes its RAM to a file.
        Command::Snapshot { .. } | Command::Dump => SNAPSHOT_TIMEOUT,
        Command::Detach { seconds, .. } => TIMEOUT + Duration::from_secs((*seconds).into()),
        _ => TIMEOUT,
    }
}

/// Sends the line of the call with its descriptors.
fn send(
    stream: &UnixStream,
    command: Command,
    descriptors: &[BorrowedFd<'_>],
    open: Option<ToOpen>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(patience(&command)))?;
    let call = Call { id: ID, command };
    let mut line = serde_json::to_vec(&Line { open, call })?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let (text, flags) = ([IoSlice::new(&line)], SendFlags::NOSIGNAL);
    let sent = rustix::net::sendmsg(stream, &text, &mut ancillary, flags)?;
    match sent == line.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// What the words of the command line are, as clients write it in JSON; files are not the machine's to
/// know.
fn errand(args: &CtlArgs) -> serde_json::Result<Errand> {
    if !NAMES.split(", ").any(|name| name == args.command) {
        let wrong = &args.command;
        return Err(Error::custom(format!("{wrong:?}; there are {NAMES}")));
    }
    if args.command == "exec" && !args.arguments.is_empty() {
        // A program is given what looks like a field as it is.
        return Ok(Errand::Exec(args.arguments.clone()));
    }
    let mut fields = Map::new();
    let mut words = Vec::new();
    for argument in &args.arguments {
        match argument.split_once('=') {
            // A value that is JSON stands for itself, anything else for its text.
            Some((name, value)) => {
                let json = serde_json::from_str(value).unwrap_or_else(|_| value.into());
                fields.insert(name.to_owned(), json);
            }
            None => words.push(argument.clone()),
        }
    }
    if args.stop && args.command != "snapshot" {
        return Err(serde_json::Error::custom("only a snapshot takes --stop"));
    }
    match (args.command.as_str(), words.as_slice()) {
        ("exec", _) => Err(serde_json::Error::custom("a program is to be named")),
        ("list" | "events" | "console" | "console-log", []) if !fields.is_empty() => {
            Err(serde_json::Error::custom("it takes no arguments"))
        }
        ("list", []) => Ok(Errand::List),
        ("events", []) => Ok(Errand::Events),
        ("console", []) => Ok(Errand::Console),
        ("console-log", []) => Ok(Errand::ConsoleLog),
        ("snapshot", [directory]) => {
            fields.insert("stop".to_owned(), args.stop.into());
            Ok(Errand::Snapshot(command(args, fields)?, directory.into()))
        }
        ("snapshot", _) => Err(serde_json::Error::custom("a snapshot needs one directory")),
        ("dump", [file]) => Ok(Errand::Dump(command(args, fields)?, file.into())),
        ("dump", _) => Err(serde_json::Error::custom("a dump needs one file")),
        ("attach", [name, what]) => match what.strip_prefix("tap:") {
            Some(tap) => NewNic::new(name.clone(), tap.to_owned(), fields)
                .map(|nic| Errand::AttachNic(Box::new(nic))),
            None => NewDisk::new(name.clone(), what.clone(), fields).map(Errand::Attach),
        },
        ("attach", _) => Err(serde_json::Error::custom(
            "a new device needs a name, and an image or tap:TAP",
        )),
        ("setLink", []) => set_link(fields).map(Errand::Call),
        ("metrics", []) => Labels::new(fields).map(Errand::Metrics),
        ("detach", [name]) => {
            fields.insert("name".to_owned(), name.clone().into());
            command(args, fields).map(Errand::Call)
        }
        (_, []) => command(args, fields).map(Errand::Call),
        _ => Err(serde_json::Error::custom("not of the form NAME=VALUE")),
    }
}

/// What people say of a NIC is its device's order.
fn set_link(fields: Map<String, Value>) -> serde_json::Result<Command> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Link {
        nic: String,
        up: bool,
    }
    let Link { nic: name, up } = serde_json::from_value(fields.into())?;
    let order = serde_json::to_value(NetCommand::SetLink { up })?;
    Ok(Command::Device { name, order })
}

fn command(args: &CtlArgs, mut fields: Map<String, Value>) -> serde_json::Result<Command> {
    fields.insert("command".to_owned(), args.command.clone().into());
    serde_json::from_value(fields.into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;
    use vmm::control::{MachineState, VcpuRegisters};

    use super::*;
    use crate::cli::{Cli, CliCommand};

    fn parse(words: &[&str]) -> serde_json::Result<Errand> {
        let words = ["podvisor", "ctl", "--vm", "x"].iter().chain(words);
        let cli = Cli::try_parse_from(words).expect("usage");
        match cli.command {
            CliCommand::Ctl(args) => errand(&args),
            _ => panic!("ctl"),
        }
    }

    #[test]
    fn registers_are_for_people_and_for_programs() {
        let vcpu = VcpuRegisters {
            vcpu: 1,
            instruction_pointer: 0x1000,
            instruction: vec![0xf4],
            registers: [("rax".to_owned(), 7)].into(),
        };
        let mut answer = Answer::from(MachineState::Running);
        answer.registers = Some(vec![vcpu]);
        let text = shown(LogFormat::Text, "line", &answer);
        let expected =
            "vCPU 1\n  rip 0x0000000000001000, instruction f4\n       rax 0x0000000000000007\n";
        assert_eq!(text, expected);
        assert_eq!(shown(LogFormat::Json, "line", &answer), "line\n");
    }

    #[test]
    fn commands_are_listed_for_who_names_none() {
        let error = parse(&["fly"]).expect_err("there is none").to_string();
        assert!(error.starts_with("\"fly\"; there are list, "), "{error}");
        // The protocol's own list, in quotes.
        let call = serde_json::from_value::<Command>(json!({"command": "fly"}));
        let known = call.expect_err("there is none").to_string();
        // All but the launcher's own.
        for name in known
            .split('`')
            .skip(3)
            .step_by(2)
            .filter(|name| *name != "boot")
        {
            parse(&[name]).map_or_else(
                |error| assert!(!error.to_string().contains("there are"), "{error}"),
                drop,
            );
        }
    }

    #[test]
    fn words_become_a_command() {
        let call = |words: &[&str]| match parse(words).expect("a command") {
            Errand::Call(command) => command,
            other => panic!("{other:?}"),
        };
        assert_eq!(call(&["pause"]), Command::Pause);
        let set_link = Command::Device {
            name: "default".to_owned(),
            order: json!({"command": "setLink", "up": false}),
        };
        assert_eq!(call(&["setLink", "nic=default", "up=false"]), set_link);
        let (name, seconds) = ("data".to_owned(), 3);
        let detach = Command::Detach { name, seconds };
        assert_eq!(call(&["detach", "data", "seconds=3"]), detach);
        let snapshot = parse(&["snapshot", "/tmp/x", "--stop"]).expect("a command");
        let expected = Command::Snapshot { stop: true };
        assert_eq!(snapshot, Errand::Snapshot(expected, "/tmp/x".into()));
        let dump = parse(&["dump", "/tmp/x"]).expect("a command");
        assert_eq!(dump, Errand::Dump(Command::Dump, "/tmp/x".into()));
        assert_eq!(parse(&["list"]).expect("a command"), Errand::List);
        assert_eq!(parse(&["events"]).expect("a command"), Errand::Events);
        assert_eq!(parse(&["console"]).expect("a command"), Errand::Console);
        let words = ["/bin/sh", "-c", "a=b; echo $a"];
        let exec = parse(&["exec", "--", words[0], words[1], words[2]]).expect("a command");
        assert_eq!(exec, Errand::Exec(words.map(str::to_owned).into()));
        let attach = parse(&["attach", "data", "/tmp/x", "readOnly=true"]).expect("a command");
        let Errand::Attach(disk) = attach else {
            panic!("{attach:?}");
        };
        assert_eq!((&*disk.name, disk.options.read_only), ("data", true));
        for wrong in [
            &["fly"][..],
            &["list", "x=1"],
            &["events", "x"],
            &["console", "x=1"],
            &["exec"],
            &["setLink"],
            &["setLink", "nic=x", "up=maybe"],
            &["setLink", "nic=x", "up=true", "down=true"],
            &["pause", "/tmp/x"],
            &["pause", "--stop"],
            &["snapshot"],
            &["snapshot", "/tmp/x", "/tmp/y"],
            &["dump"],
            &["attach", "data"],
            &["attach", "net1", "tap:tap1"],
            &["attach", "data", "/tmp/x", "colour=red"],
            &["detach"],
            &["detach", "data", "seconds=soon"],
            &["metrics", "vm"],
            &["metrics", "1=vm"],
        ] {
            parse(wrong).expect_err(&wrong.join(" "));
        }
    }
}
