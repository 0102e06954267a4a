//! `podvisor ctl console` and `console-log`: this terminal for the machine's serial console, and what was written there.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::super::{CommandError, output};
use super::{Machine, list};
use crate::exit::Exit;
use crate::kept::{self, MachineFiles};
use crate::terminal::RawTerminal;

/// What leaves the console: Ctrl-], as in telnet and virsh.
const ESCAPE: u8 = 0x1d;

/// What is read at once, bytes.
const CHUNK: usize = 4096;

/// Prints what the guest has written to its console: of a machine that runs, or of one that was left to itself and has ended.
pub(super) fn print_log(vm: Option<&str>) -> Result<Exit, CommandError> {
    let path = match list::socket(vm) {
        Ok(socket) => (Machine(socket).ends()?.console_file).ok_or(CommandError::NoEnd {
            what: "file with what its console said",
            way_out: "Start it with --detach, or --console file:PATH.",
        })?,
        Err(error) => vm.and_then(kept_log).ok_or(error)?,
    };
    let read = fs::read(&path).map_err(|source| CommandError::Console { path, source })?;
    output::print(&read)?;
    Ok(Exit::Success)
}

fn kept_log(name: &str) -> Option<PathBuf> {
    let files = MachineFiles::of(&kept::state_directory()?, name);
    files.console.exists().then_some(files.console)
}

/// Passes on what is typed and what the guest writes until the escape key, or the machine's end.
pub(super) fn sit_at(path: &Path) -> Result<Exit, CommandError> {
    let fail = |source| CommandError::Console {
        path: path.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(path).map_err(fail)?;
    let terminal = RawTerminal::enter().map_err(fail)?;
    if terminal.is_some() {
        crate::report::tell("Connected to the console; the escape key is Ctrl-]");
    }
    pass_on(&io::stdin(), &io::stdout(), &mut stream).map_err(fail)?;
    drop(terminal);
    Ok(Exit::Success)
}

fn pass_on(keys: &impl AsFd, screen: &impl AsFd, stream: &mut UnixStream) -> io::Result<()> {
    let mut typed_on = true;
    let mut buffer = [0; CHUNK];
    loop {
        let mut fds = [
            PollFd::new(stream, PollFlags::IN),
            PollFd::new(keys, PollFlags::IN),
        ];
        match poll(&mut fds[..1 + usize::from(typed_on)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [written, typed] = fds.map(|fd| !fd.revents().is_empty());
        if written {
            match read(stream, &mut buffer)? {
                0 => return Ok(()),
                len => write_all(screen, &buffer[..len])?,
            }
        }
        if typed && typed_on {
            let len = read(keys, &mut buffer)?;
            let keys = &buffer[..len];
            let end = keys.iter().position(|key| *key == ESCAPE);
            stream.write_all(&keys[..end.unwrap_or(len)])?;
            if end.is_some() {
                return Ok(());
            }
            // What the guest writes then is still to be seen.
            typed_on = len > 0;
        }
    }
}

/// A machine that is gone has nothing more to say.
fn read(from: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    match rustix::io::retry_on_intr(|| rustix::io::read(from, &mut *buffer)) {
        Err(Errno::CONNRESET) => Ok(0),
        read => Ok(read?),
    }
}

fn write_all(to: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let len = rustix::io::retry_on_intr(|| rustix::io::write(to, bytes))?;
        bytes = &bytes[len..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::thread;

    use super::*;

    #[test]
    fn keys_and_words_are_passed_on_until_the_escape_key() {
        let (mut machine, mut stream) = UnixStream::pair().expect("sockets");
        let (keys, mut typist) = io::pipe().expect("a pipe");
        let (mut eyes, screen) = io::pipe().expect("a pipe");
        let sitting = thread::spawn(move || pass_on(&keys, &screen, &mut stream));
        typist.write_all(b"ls\r").expect("typed");
        let mut heard = [0; 3];
        machine.read_exact(&mut heard).expect("the keys");
        machine.write_all(b"a  b\r\n").expect("written");
        let mut seen = [0; 6];
        eyes.read_exact(&mut seen).expect("the words");
        assert_eq!((&heard, &seen), (b"ls\r", b"a  b\r\n"));
        typist.write_all(b"x\x1dy").expect("typed");
        sitting.join().expect("no panic").expect("it was left");
        let mut rest = String::new();
        machine.read_to_string(&mut rest).expect("the end");
        assert_eq!(rest, "x", "nothing behind the escape key");
    }

    #[test]
    fn what_the_guest_writes_is_seen_to_its_end_where_nothing_is_typed() {
        let (mut machine, mut stream) = UnixStream::pair().expect("sockets");
        let (keys, _) = io::pipe().expect("a pipe");
        let (mut eyes, screen) = io::pipe().expect("a pipe");
        let sitting = thread::spawn(move || pass_on(&keys, &screen, &mut stream));
        machine.write_all(b"bye").expect("written");
        drop(machine);
        sitting.join().expect("no panic").expect("it ended");
        let mut seen = String::new();
        eyes.read_to_string(&mut seen).expect("the words");
        assert_eq!(seen, "bye");
    }
}
