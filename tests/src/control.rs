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
    calls: u64,
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
            calls: 0,
        }
    }

    /// Stops vCPUs and devices; returns when they stand still.
    #[track_caller]
    pub fn pause(&mut self) {
        assert_eq!(self.ask("pause")["state"], "paused");
    }

    /// Undoes [`Control::pause`].
    #[track_caller]
    pub fn resume(&mut self) {
        assert_eq!(self.ask("resume")["state"], "running");
    }

    /// `starting`, `running`, `paused`, …
    #[track_caller]
    pub fn status(&mut self) -> String {
        let answer = self.ask("status");
        answer["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Counters of vCPUs and devices.
    #[track_caller]
    pub fn stats(&mut self) -> Value {
        self.ask("stats")["stats"].take()
    }

    /// Sets the link state of a NIC.
    #[track_caller]
    pub fn set_link(&mut self, nic: &str, up: bool) {
        self.order(nic, json!({"command": "setLink", "up": up}));
    }

    /// Has a device obey an order.
    #[track_caller]
    pub fn order(&mut self, device: &str, order: Value) {
        self.done(json!({ "command": "device", "name": device, "order": order }));
    }

    /// Sends a command and returns what it led to.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> Value {
        self.done(json!({ "command": command }))
    }

    #[track_caller]
    fn done(&mut self, call: Value) -> Value {
        let mut reply = self.call(call);
        assert!(reply["result"].is_object(), "{reply}");
        reply["result"].take()
    }

    /// Sends a call under a number of its own and waits for its reply.
    #[track_caller]
    pub fn call(&mut self, call: Value) -> Value {
        let number = self.begin(call);
        self.reply(number)
    }

    /// Sends a call; the number under which it will be answered.
    #[track_caller]
    pub fn begin(&mut self, mut call: Value) -> u64 {
        self.calls += 1;
        call["id"] = self.calls.into();
        let sent = writeln!(self.stream.get_mut(), "{call}");
        sent.expect("the control socket takes a line");
        self.calls
    }

    /// Waits for the reply with this number.
    #[track_caller]
    pub fn reply(&mut self, number: u64) -> Value {
        let is_reply = |message: &Value| message["event"].is_null() && message["id"] == number;
        self.find(&format!("a reply to call {number}"), is_reply)
    }

    /// Sends a command and does not wait for its reply.
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
        self.find(event, |message| message["event"] == event)
    }

    /// The next message of the kind.
    #[track_caller]
    fn find(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let mut line = String::new();
            let read = self.stream.read_line(&mut line);
            let len = read.unwrap_or_else(|error| panic!("nothing of {what:?}: {error}"));
            assert!(len > 0, "the control connection ended before {what:?}");
            let message: Value = serde_json::from_str(&line).expect("each line is JSON");
            if is_it(&message) {
                return message;
            }
        }
    }
}
