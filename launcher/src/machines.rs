//! Running machines by name: each run listens for commands where others find it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::Serialize;

use crate::network::STATE_DIR;
use crate::report;
use crate::resources::ListenSocket;

/// Ends the names of sockets in [`directory`].
const SUFFIX: &str = ".sock";

/// Where the runtime files of an ordinary user are, if anywhere.
const RUNTIME_DIRECTORY: &str = "XDG_RUNTIME_DIR";

/// A machine that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunningMachine {
    /// The VMI's name.
    pub name: String,
    /// Where its launcher listens for commands.
    pub socket: PathBuf,
}

/// Where this user's machines listen: none for an ordinary user outside of a session.
pub fn directory() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(STATE_DIR.into());
    }
    let runtime = PathBuf::from(std::env::var_os(RUNTIME_DIRECTORY)?);
    runtime.is_absolute().then(|| runtime.join("podvisor"))
}

/// Where the machine called `name`, which is a DNS name, listens in [`directory`].
pub fn socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}{SUFFIX}"))
}

/// Makes [`directory`], or another one of ours, for this user alone.
pub fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

/// Listens for commands in `directory`. Nobody asked for it: in a container without a place for it, and beside another
/// machine of the name, there is none.
pub(crate) fn listen(directory: Option<PathBuf>, name: &str) -> Option<ListenSocket> {
    let directory = directory?;
    let made = make(&directory).map_err(|error| error.to_string());
    let socket = socket(&directory, name);
    let bind = |()| ListenSocket::bind("control", &socket).map_err(|error| report::chain(&error));
    made.and_then(bind)
        .inspect_err(|error| tracing::info!("podvisor ctl does not find this machine: {error}"))
        .ok()
}

/// The machines that run, by name. A socket that a killed run has left is replaced by the next one of that name.
pub fn running(directory: &Path) -> Vec<RunningMachine> {
    let machines = names(directory).filter_map(|name| find(directory, &name));
    let mut machines: Vec<_> = machines.collect();
    machines.sort_by(|a, b| a.name.cmp(&b.name));
    machines
}

/// Sockets there that nobody listens on any more.
pub fn dead(directory: &Path) -> Vec<PathBuf> {
    let sockets = names(directory).map(|name| socket(directory, &name));
    let is_dead = |path: &PathBuf| is_listening(path) == Err(Errno::CONNREFUSED);
    sockets.filter(is_dead).collect()
}

/// Names that sockets there have, of machines that run or are gone.
fn names(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
    entries.filter_map(move |entry| name(entry)?.strip_suffix(SUFFIX).map(str::to_owned))
}

/// Whether a machine that was found runs still.
pub fn is_running(machine: &RunningMachine) -> bool {
    is_listening(&machine.socket).unwrap_or(false)
}

/// The machine called `name`, if it runs.
pub fn find(directory: &Path, name: &str) -> Option<RunningMachine> {
    let socket = socket(directory, name);
    let machine = RunningMachine {
        name: name.to_owned(),
        socket,
    };
    is_running(&machine).then_some(machine)
}

/// Does not wait for a launcher that stands still, with others waiting for it: it is there.
fn is_listening(path: &Path) -> rustix::io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn those_that_listen_run() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let directory = parent.path().join("podvisor");
        assert_eq!(running(&directory), []);
        make(&directory).expect("made");
        make(&directory).expect("made before");
        let names = ["b", "a.example", "gone"];
        let sockets = names.map(|name| {
            let socket = socket(&directory, name);
            (UnixListener::bind(&socket).expect("ours"), socket)
        });
        fs::write(directory.join("record.json"), "").expect("ours");
        symlink("nowhere", directory.join("link.sock")).expect("ours");
        let [b, a, (listener, gone)] = sockets;
        drop(listener);
        assert_eq!(dead(&directory), [gone]);
        let machine = |name: &str, socket: &PathBuf| RunningMachine {
            name: name.to_owned(),
            socket: socket.clone(),
        };
        let expected = [machine("a.example", &a.1), machine("b", &b.1)];
        assert_eq!(running(&directory), expected);
        assert_eq!(find(&directory, "b"), Some(expected[1].clone()));
        assert_eq!(find(&directory, "gone"), None);
    }
}
