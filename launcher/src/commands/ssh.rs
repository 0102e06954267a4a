//! `podvisor ssh`: into the guest of a machine, once it answers.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use thiserror::Error;

use super::{CommandError, ctl};
use crate::cli::SshArgs;
use crate::exit::Exit;
use crate::kept::{self, MachineFiles, ReachedGuest};
use crate::machines::{self, RunningMachine};
use crate::network::Forward;
use crate::report;
use crate::vmi::Protocol;

const PROGRAM: &str = "ssh";

/// Where a guest's server listens.
const PORT: u16 = 22;

/// What both sides of SSH say first (RFC 4253, 4.2), and how that begins. passt before September 2024 completes a
/// connection only when its client has said something.
const OUR_GREETING: &[u8] = b"SSH-2.0-podvisor\r\n";
const GREETING: &[u8] = b"SSH-";

/// How long a server may take to say it, at first and at most, and the time between two tries.
const PATIENCE: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

/// Why a guest is not reached.
#[derive(Debug, Error)]
pub enum SshError {
    /// No port leads to it.
    #[error("No port of this host is known that leads to port {PORT} of the guest of {0:?}")]
    NoPort(String),
    /// Who is to log in is not known.
    #[error("The user of the guest of {0:?} is not known")]
    NoUser(String),
    /// The machine has ended.
    #[error("The machine {0:?} does not run any more")]
    Gone(String),
    /// There is no place for a key.
    #[error("There is no directory for the key: neither XDG_DATA_HOME nor HOME is set")]
    NoKey,
    /// No key was made, and so none is in the guest's seed.
    #[error("There is no key {0:?}: it could not be made when the machine started")]
    KeyMissing(PathBuf),
    /// The client cannot be run.
    #[error("Cannot run {PROGRAM}")]
    Run(#[source] io::Error),
}

impl SshError {
    pub(super) fn way_out(&self) -> &'static str {
        match self {
            Self::NoPort(_) => "Start the machine with --publish 2222:22.",
            Self::NoUser(_) => "Say it with --user, or start the machine with --user.",
            Self::Gone(_) | Self::NoKey => "",
            Self::KeyMissing(_) => {
                "Install ssh-keygen (Debian: openssh-client) and start the machine again, or use ssh with a key of --ssh-key."
            }
            Self::Run(_) => "Install it (Debian: openssh-client).",
        }
    }
}

/// Becomes the client once the guest's server answers.
pub(super) fn ssh(args: &SshArgs) -> Result<Exit, CommandError> {
    let machine = ctl::running(args.vm.as_deref())?;
    let name = machine.name.clone();
    let state = kept::state_directory();
    let files = state.map(|state| MachineFiles::of(&state, &name));
    let guest = files.and_then(|files| files.guest().ok());
    let guest = guest.ok_or_else(|| SshError::NoPort(name.clone()))?;
    let user = args.user.clone().or(guest.user);
    let user = user.ok_or_else(|| SshError::NoUser(name.clone()))?;
    let key = kept::key(&kept::data_directory().ok_or(SshError::NoKey)?);
    if !key.exists() {
        return Err(SshError::KeyMissing(key).into());
    }
    wait_for(guest.port, &machine)?;
    let words = words(&key, guest.port, &user, &args.command);
    // Returns only if it fails.
    Err(SshError::Run(Command::new(PROGRAM).args(words).exec()).into())
}

/// Waits until an SSH server answers behind the port, as long as the machine runs. passt takes connections before the
/// guest does, and closes them.
fn wait_for(port: u16, machine: &RunningMachine) -> Result<(), SshError> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let (mut patience, mut told) = (*PATIENCE.start(), false);
    loop {
        match greets(address, patience) {
            Ok(true) => return Ok(()),
            Err(error) if is_timeout(&error) => patience = more(patience),
            Ok(false) | Err(_) => {}
        }
        if !machines::is_running(machine) {
            return Err(SshError::Gone(machine.name.clone()));
        }
        if !told {
            report::tell(&format!("waiting for the guest of {:?}", machine.name));
            told = true;
        }
        sleep(PAUSE);
    }
}

/// What a server gets that was silent for so long: it may be slow. passt ends connections that the guest does not take after
/// 10 s.
fn more(patience: Duration) -> Duration {
    (patience * 2).min(*PATIENCE.end())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn greets(address: SocketAddr, patience: Duration) -> io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(OUR_GREETING)?;
    let mut said = [0; GREETING.len()];
    stream.read_exact(&mut said)?;
    Ok(said == GREETING)
}

/// A guest makes its host key anew with each overlay, and it is reached over this host's loopback: the key is not asked for.
fn words(key: &Path, port: u16, user: &str, command: &[OsString]) -> Vec<OsString> {
    let options = [
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
    ];
    let options = options.into_iter().flat_map(|option| ["-o", option]);
    let mut words: Vec<OsString> = options.map(OsString::from).collect();
    words.extend(["-i".into(), key.into()]);
    words.extend(["-p".into(), port.to_string().into()]);
    words.extend(["-l".into(), user.into(), "127.0.0.1".into()]);
    words.extend(command.iter().cloned());
    words
}

/// How the guest is reached behind these ports, if it is.
pub(super) fn reached(user: Option<&str>, publish: &[Forward]) -> Option<ReachedGuest> {
    let is_ours = |to: &&Forward| to.to == PORT && to.protocol == Protocol::Tcp;
    let forward = publish.iter().find(is_ours)?;
    Some(ReachedGuest {
        user: user.map(str::to_owned),
        port: forward.from,
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_slow_guest_gets_more_time_to_answer() {
        let seconds = Duration::from_secs;
        assert_eq!(
            [5, 40, 60].map(seconds).map(more),
            [10, 60, 60].map(seconds)
        );
    }

    #[test]
    fn a_server_is_waited_for_as_long_as_the_machine_runs() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = machines::socket(directory.path(), "m");
        let launcher = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        let machine = machines::find(directory.path(), "m").expect("it runs");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let server = std::thread::spawn(move || {
            // As passt does before the guest listens.
            drop(listener.accept());
            let (mut client, _) = listener.accept().expect("a client");
            // As a guest behind an old passt, which waits for what comes first.
            client.read_exact(&mut [0; 4]).expect("it writes");
            client.write_all(b"SSH-2.0-test\r\n").expect("it reads");
        });
        wait_for(port, &machine).expect("it answers");
        server.join().expect("it ends");
        drop(launcher);
        let error = wait_for(port, &machine).expect_err("both are gone");
        assert!(matches!(error, SshError::Gone(_)), "{error}");
    }

    #[test]
    fn the_first_port_that_leads_to_a_server_is_kept() {
        let forward = |from, to, protocol| Forward { protocol, from, to };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let ports = [
            forward(1, 22, udp),
            forward(2, 80, tcp),
            forward(3, 22, tcp),
        ];
        let guest = reached(Some("me"), &ports).expect("a port");
        assert_eq!((guest.user.as_deref(), guest.port), (Some("me"), 3));
        assert_eq!(reached(None, &ports[..2]), None);
    }
}
