//! Ports of the virtio console with Linux's driver.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use podvisor_tests::PATIENCE;
use podvisor_tests::run::{Guest, Run};

/// Sockets of the ports.
pub struct Ports {
    agent: PathBuf,
    console: PathBuf,
}

impl Ports {
    /// Adds them to a run.
    pub fn add(run: Run) -> (Run, Self) {
        let ports = Self {
            agent: run.dir().join("agent.sock"),
            console: run.dir().join("console.sock"),
        };
        let option = |path: &Path| format!("unix:{}", path.display());
        let run = run.arg("--guest-agent").arg(option(&ports.agent));
        let run = run.arg("--virtio-console").arg(option(&ports.console));
        (run, ports)
    }

    /// What is asked through the agent's channel is answered there, client after client, and what the
    /// guest says on its console comes out of the console's socket. Ends what the guest runs for it.
    #[track_caller]
    pub fn answer(&self, guest: &mut Guest) {
        guest.wait_for("RESULT port=org.qemu.guest_agent.0");
        for word in ["one", "two"] {
            assert_eq!(ask(&self.agent, word), format!("answer {word}"));
        }
        assert_eq!(ask(&self.console, "console"), "said console");
        assert_eq!(ask(&self.agent, "end"), "answer end");
    }

    /// They go away with their machine.
    #[track_caller]
    pub fn are_gone(&self) {
        assert!(!self.agent.exists() && !self.console.exists());
    }
}

/// Writes a line and reads one, but for the line itself, which a terminal echoes.
#[track_caller]
fn ask(path: &Path, line: &str) -> String {
    let mut client = UnixStream::connect(path).expect("the socket takes a client");
    client
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    writeln!(client, "{line}").expect("the socket takes a line");
    let lines = BufReader::new(client).lines();
    let mut lines = lines.map(|line| line.expect("a line").trim_end().to_owned());
    lines.find(|answer| answer != line).expect("an answer")
}
