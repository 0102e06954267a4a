//! A client of `podvisor run --control`.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::PATIENCE;

/// A connection to the control socket of a machine.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
}

impl Control {
    /// Connects to a machine that is there.
    #[track_caller]
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("the control socket takes connections");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a timeout can be set");
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Stops vCPUs and devices; returns when they stand still.
    #[track_caller]
    pub fn pause(&mut self) {
        self.ask("pause", "paused");
    }

    /// Undoes [`Control::pause`].
    #[track_caller]
    pub fn resume(&mut self) {
        self.ask("resume", "running");
    }

    /// `starting`, `running` or `paused`.
    #[track_caller]
    pub fn status(&mut self) -> String {
        let answer = self.ask("status", "status");
        answer["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Counters of vCPUs and devices.
    #[track_caller]
    pub fn stats(&mut self) -> Value {
        self.ask("stats", "stats")
    }

    /// Sets the link state of a NIC.
    #[track_caller]
    pub fn set_link(&mut self, nic: &str, up: bool) {
        let command = json!({ "command": "setLink", "nic": nic, "up": up });
        let sent = writeln!(self.stream.get_mut(), "{command}");
        sent.expect("the control socket takes a line");
    }

    /// Sends a command that has no answer.
    #[track_caller]
    pub fn tell(&mut self, command: &str) {
        let sent = self.try_tell(command);
        sent.expect("the control socket takes a line");
    }

    /// The same where the run may have ended.
    pub fn try_tell(&mut self, command: &str) -> io::Result<()> {
        let line = format!("{}\n", json!({ "command": command }));
        self.stream.get_mut().write_all(line.as_bytes())
    }

    /// Waits for an event, passing over others.
    #[track_caller]
    pub fn wait_for(&mut self, event: &str) -> Value {
        loop {
            let mut line = String::new();
            let read = self.stream.read_line(&mut line);
            let len = read.unwrap_or_else(|error| panic!("no event {event:?}: {error}"));
            assert!(len > 0, "the control connection ended before {event:?}");
            let message: Value = serde_json::from_str(&line).expect("each line is JSON");
            if message["event"] == event {
                return message;
            }
        }
    }

    #[track_caller]
    fn ask(&mut self, command: &str, answer: &str) -> Value {
        self.tell(command);
        self.wait_for(answer)
    }
}
