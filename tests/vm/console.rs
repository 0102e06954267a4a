//! Where the serial console goes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use podvisor_tests::PATIENCE;
use podvisor_tests::run::Run;
use podvisor_tests::transcript::Transcript;
use podvisor_tests::vmi::Vmi;
use rustix::process::Signal;

/// A client of `--console unix:PATH`. What it saw is printed if the test fails.
pub struct Terminal {
    stream: UnixStream,
    output: Transcript,
}

impl Terminal {
    /// Connects.
    #[track_caller]
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("the console takes connections");
        let output = stream.try_clone().expect("a socket can be cloned");
        Self {
            stream,
            output: Transcript::follow("terminal", output),
        }
    }

    /// Types a line.
    #[track_caller]
    pub fn type_line(&self, line: &str) {
        let written = (&self.stream).write_all(format!("{line}\n").as_bytes());
        written.expect("the console takes input");
    }

    /// Waits for the shell's prompt.
    #[track_caller]
    pub fn wait_for_prompt(&self) {
        self.output.wait_for_prompt("guest# ", PATIENCE);
    }

    /// The next line with `text` in it.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        self.output.wait_for(text, PATIENCE);
    }

    /// The next line that `look` finds something in.
    #[track_caller]
    pub fn wait_for_match<T>(&self, look: impl Fn(&str) -> Option<T>) -> T {
        self.output.wait_for_match(look, PATIENCE)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Ends the thread that reads; fails if the other side is gone already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if std::thread::panicking() {
            self.output.print();
        }
    }
}

#[test]
fn file() {
    let run = Run::new(&Vmi::new("file"));
    let path = run.dir().join("console.log");
    fs::write(&path, "kept\n").expect("the file can be written");
    let console = format!("file:{}", path.display());
    let mut guest = run.payload("hello").arg("--console").arg(console).start();
    guest.exits_with(0);
    let text = fs::read_to_string(&path).expect("the file can be read");
    assert!(text.starts_with("kept\n"), "it is appended to: {text:?}");
    assert!(
        text.contains("mode=hello") && text.contains("PAYLOAD-DONE"),
        "{text:?}"
    );
    assert_eq!(guest.console.text(), "");
}

#[test]
fn none() {
    let run = Run::new(&Vmi::new("none"))
        .payload("hello")
        .arg("--console")
        .arg("none");
    let mut guest = run.start();
    guest.exits_with(0);
    assert_eq!(guest.console.text(), "");
}

/// Nobody has to read for the guest to go on.
#[test]
fn socket_without_a_client() {
    let run = Run::new(&Vmi::new("alone"));
    let console = format!("unix:{}", run.dir().join("console.sock").display());
    let mut guest = run.payload("hello").arg("--console").arg(console).start();
    guest.exits_with(0);
}

/// Somebody sits at it, leaves it by the escape key, and the machine goes on.
#[test]
fn socket_by_ctl() {
    let run = Run::new(&Vmi::new("seated"));
    let console = format!("unix:{}", run.dir().join("console.sock").display());
    let run = run.payload("ticker secs=100000");
    let mut guest = run.arg("--console").arg(console).start();
    guest.wait_until_running();
    let mut client = guest.ctl_command(&["console"]);
    client.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = client.spawn().expect("podvisor ctl");
    let screen = BufReader::new(client.stdout.take().expect("a pipe"));
    let mut lines = screen.lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("TICK")), "the guest writes");
    let mut keys = client.stdin.take().expect("a pipe");
    keys.write_all(b"\x1d").expect("typed");
    assert!(client.wait().expect("podvisor ctl").success());
    assert_eq!(guest.control().status(), "running");
    let without = guest.ctl(&["exec", "true"]);
    let said = String::from_utf8_lossy(&without.stderr).into_owned();
    assert_eq!(without.status.code(), Some(5), "{said}");
    assert!(said.contains("--guest-agent"), "{said}");
    guest.signal(Signal::KILL);
    guest.wait();
}

/// On a terminal, Ctrl-A x stops the machine, and the terminal leaves raw mode.
#[test]
fn escape_key_on_a_terminal() {
    let script = "exec script -qefc \"${*@Q}; status=\\$?; stty -a; exit \\$status\" /dev/null";
    let run = Run::new(&Vmi::new("escape"))
        .payload("ticker secs=100000")
        .with_input();
    let mut guest = run.within(["bash", "-c", script, "script"]).start();
    guest.wait_for("TICK");
    guest.type_line("\x01x");
    guest.wait_for("escape key");
    let modes = guest.wait_for("icanon");
    assert!(
        !modes.contains("-icanon") && !modes.contains("-echo "),
        "{modes}"
    );
    guest.exits_with(4);
}

/// A guest that says much more than a pipe holds loses nothing of it.
#[test]
fn every_byte_of_a_flood() {
    let run = Run::new(&Vmi::new("flood")).payload("ticker secs=2 interval_ms=1");
    let mut guest = run.start();
    guest.exits_with(0);
    let text = guest.console.text();
    let ticks: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("TICK"))
        .collect();
    for (index, tick) in ticks.iter().enumerate() {
        let start = format!("TICK cpu=0 n={} us=", index + 1);
        assert!(
            tick.starts_with(&start) && tick.contains(" gap_us="),
            "line {index}: {tick:?}"
        );
    }
    assert!(text.ends_with("PAYLOAD-DONE\n"), "the last bytes are there");
}
