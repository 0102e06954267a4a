//! What podvisor keeps on somebody's computer: what machines said that ran by themselves, how their guests are reached, and
//! a key for these guests.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::machines;

/// Variables of the XDG base directories, and where those are below the home directory if they are not set.
const STATE: (&str, &str) = ("XDG_STATE_HOME", ".local/state");
const DATA: (&str, &str) = ("XDG_DATA_HOME", ".local/share");

/// What is podvisor's in each of them.
const OURS: &str = "podvisor";

/// How names of a machine's files end.
const LOG: &str = "log";
const CONSOLE: &str = "console";
const GUEST: &str = "json";

/// Name of the key for guests, and how that of its public part ends.
const KEY: &str = "ssh_key";
const PUBLIC: &str = "pub";

/// Makes keys.
const KEY_MAKER: &str = "ssh-keygen";

/// Where what machines have said is kept, if there is a place.
pub fn state_directory() -> Option<PathBuf> {
    directory(STATE, |name| std::env::var_os(name).map(PathBuf::from))
}

/// Where the key is kept, if there is a place.
pub fn data_directory() -> Option<PathBuf> {
    directory(DATA, |name| std::env::var_os(name).map(PathBuf::from))
}

/// A relative path is none (XDG Base Directory Specification).
fn directory(
    (variable, below_home): (&str, &str),
    read: impl Fn(&str) -> Option<PathBuf>,
) -> Option<PathBuf> {
    let said = |name| read(name).filter(|path| path.is_absolute());
    let base = said(variable).or_else(|| Some(said("HOME")?.join(below_home)));
    base.map(|base| base.join(OURS))
}

/// Files of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineFiles {
    /// Its messages.
    pub log: PathBuf,
    /// What its guest writes to the serial console.
    pub console: PathBuf,
    /// How its guest is reached.
    guest: PathBuf,
}

impl MachineFiles {
    /// Those of the machine called `name`, which is a DNS name.
    pub fn of(directory: &Path, name: &str) -> Self {
        let file = |kind: &str| directory.join(format!("{name}.{kind}"));
        Self {
            log: file(LOG),
            console: file(CONSOLE),
            guest: file(GUEST),
        }
    }

    /// Makes the files for what it says, empty: its messages go to the one that is returned.
    pub fn begin(&self) -> io::Result<File> {
        self.log.parent().map_or(Ok(()), machines::make)?;
        new_file(&self.console)?;
        new_file(&self.log)
    }

    /// Keeps how the guest is reached, or that nobody knows, whatever was known of an earlier one.
    pub fn remember(&self, guest: Option<&ReachedGuest>) -> io::Result<()> {
        let Some(guest) = guest else {
            return remove(&self.guest);
        };
        self.guest.parent().map_or(Ok(()), machines::make)?;
        let text = serde_json::to_vec(guest)?;
        new_file(&self.guest)?.write_all(&text)
    }

    /// What was kept.
    pub fn guest(&self) -> io::Result<ReachedGuest> {
        Ok(serde_json::from_slice(&fs::read(&self.guest)?)?)
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}

/// How a guest is reached by SSH.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReachedGuest {
    /// Who was made by cloud-init.
    pub user: Option<String>,
    /// Port of this host that leads to the guest's server.
    pub port: u16,
}

/// The private key for guests.
pub fn key(directory: &Path) -> PathBuf {
    directory.join(KEY)
}

/// The line of the public key for guests, which is made at its first use.
pub fn public_key(directory: &Path) -> io::Result<String> {
    let private = key(directory);
    let public = private.with_extension(PUBLIC);
    if !public.exists() {
        machines::make(directory)?;
        let mut maker = Command::new(KEY_MAKER);
        maker.args(["-q", "-t", "ed25519", "-N", "", "-C", OURS, "-f"]);
        maker
            .arg(&private)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let made = maker.output()?;
        // Another podvisor may have been faster.
        if !made.status.success() && !public.exists() {
            let said = String::from_utf8_lossy(&made.stderr);
            return Err(io::Error::other(format!("{KEY_MAKER}: {}", said.trim())));
        }
    }
    Ok(fs::read_to_string(public)?.trim().to_owned())
}

/// The same, as far as it can be had: a machine runs without.
pub fn public_key_if_possible() -> Option<String> {
    let key = public_key(&data_directory()?);
    key.inspect_err(|error| tracing::info!("podvisor ssh has no key for this guest: {error}"))
        .ok()
}

/// A file that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub what: &'static str,
    /// A machine that runs needs it.
    pub in_use: bool,
}

/// Where to look for all that is kept.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// See [`state_directory`].
    pub state: Option<PathBuf>,
    /// See [`data_directory`].
    pub data: Option<PathBuf>,
    /// See [`machines::directory`].
    pub sockets: Option<PathBuf>,
}

impl Places {
    /// Those of this user.
    pub fn of_user() -> Self {
        Self {
            state: state_directory(),
            data: data_directory(),
            sockets: machines::directory(),
        }
    }

    /// All that is kept, by path.
    pub fn kept(&self) -> Vec<Kept> {
        let running = self.sockets.as_deref().map(machines::running);
        let running = running.unwrap_or_default();
        let runs = |name: &OsStr| running.iter().any(|machine| *machine.name == *name);
        let mut kept = Vec::new();
        for path in files(self.state.as_deref()) {
            let kind = path.extension().and_then(OsStr::to_str);
            let what = match kind {
                Some(LOG) => "messages of a machine",
                Some(CONSOLE) => "console of a guest",
                Some(GUEST) => "how a guest is reached",
                _ => continue,
            };
            let in_use = path.file_stem().is_some_and(runs);
            kept.push(Kept { path, what, in_use });
        }
        for path in files(self.data.as_deref()) {
            if path.file_stem() == Some(OsStr::new(KEY)) {
                let in_use = !running.is_empty();
                let what = "key for guests";
                kept.push(Kept { path, what, in_use });
            }
        }
        let dead = self.sockets.as_deref().map(machines::dead);
        kept.extend(dead.into_iter().flatten().map(|path| Kept {
            path,
            what: "socket of a machine that is gone",
            in_use: false,
        }));
        kept.sort_by(|a, b| a.path.cmp(&b.path));
        kept
    }

    /// Removes what no machine needs, and directories that are empty then.
    pub fn remove(&self, kept: &[Kept]) -> io::Result<()> {
        for one in kept.iter().filter(|one| !one.in_use) {
            remove(&one.path)?;
        }
        for directory in [&self.state, &self.data].into_iter().flatten() {
            // One with something in it stays.
            let _ = fs::remove_dir(directory);
        }
        Ok(())
    }
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn files(directory: Option<&Path>) -> Vec<PathBuf> {
    let entries = directory.and_then(|directory| fs::read_dir(directory).ok());
    let entries = entries.into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use devices::testing::missing;

    use super::*;

    #[test]
    fn directories_are_those_of_the_specification() {
        let of = |set: &'static [(&str, &str)]| {
            let read = move |name: &str| {
                let found = set.iter().find(|(set, _)| *set == name);
                found.map(|(_, path)| PathBuf::from(path))
            };
            directory(STATE, read)
        };
        let expected = |path: &str| Some(PathBuf::from(path));
        assert_eq!(
            of(&[("HOME", "/home/me"), ("XDG_STATE_HOME", "/state")]),
            expected("/state/podvisor")
        );
        let usual = expected("/home/me/.local/state/podvisor");
        assert_eq!(of(&[("HOME", "/home/me")]), usual);
        assert_eq!(of(&[("HOME", "/home/me"), ("XDG_STATE_HOME", "x")]), usual);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn what_no_machine_needs_is_removed() {
        if Command::new(KEY_MAKER).arg("-?").output().is_err() {
            return missing(format_args!("no {KEY_MAKER}"));
        }
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| Some(directory.path().join(name));
        let places = Places {
            state: at("state"),
            data: at("data"),
            sockets: at("run"),
        };
        assert_eq!(places.kept(), []);
        let state = directory.path().join("state");
        let guest = ReachedGuest {
            user: Some("me".to_owned()),
            port: 2222,
        };
        for name in ["gone", "here.example"] {
            let files = MachineFiles::of(&state, name);
            files.begin().expect("made");
            files.remember(Some(&guest)).expect("kept");
            assert_eq!(files.guest().expect("read"), guest);
        }
        fs::write(state.join("note.txt"), "mine").expect("written");
        let sockets = directory.path().join("run");
        machines::make(&sockets).expect("made");
        let listen = |name| UnixListener::bind(machines::socket(&sockets, name)).expect("bound");
        let here = listen("here.example");
        drop(listen("gone"));
        let key = public_key(&directory.path().join("data"));
        assert!(key.expect("ssh-keygen").starts_with("ssh-ed25519 "));

        let kept = places.kept();
        let used: Vec<_> = kept.iter().map(|one| one.in_use).collect();
        let both = [true, true];
        let of_gone = [false, false, false, false];
        let of_here = [true, true, true];
        assert_eq!(used, [&both[..], &of_gone, &of_here].concat(), "{kept:?}");
        places.remove(&kept).expect("removed");
        let left: Vec<_> = places.kept();
        assert_eq!(left.len(), 5);
        drop(here);
        places.remove(&places.kept()).expect("removed");
        assert_eq!(places.kept(), []);
        assert!(state.join("note.txt").exists(), "not ours");
        assert!(!directory.path().join("data").exists());
    }
}
