//! The real gdb, at a running machine.

use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::PATIENCE;
use crate::transcript::Transcript;

/// A gdb that is asked by lines.
#[derive(Debug)]
pub struct Gdb {
    child: Child,
    stdin: ChildStdin,
    output: Transcript,
    asked: u32,
}

impl Gdb {
    /// Starts one that knows the symbols of `kernel`.
    #[track_caller]
    pub fn start(kernel: &Path) -> Self {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "gdb", "-nx", "-q"])
            .args(["-ex", "set confirm off", "-ex", "set pagination off"])
            .args(["-ex", "set width 0", "-ex", "set prompt"])
            .arg(kernel)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("gdb starts");
        let output = child.stdout.take().expect("stdout is a pipe");
        Self {
            stdin: child.stdin.take().expect("stdin is a pipe"),
            output: Transcript::follow("gdb", output),
            child,
            asked: 0,
        }
    }

    /// Has it do something, without waiting.
    #[track_caller]
    pub fn tell(&mut self, command: &str) {
        let written = writeln!(self.stdin, "{command}");
        written.expect("gdb reads its input");
    }

    /// What it says next that has `text` in it.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        self.output.wait_for(text, PATIENCE)
    }

    /// Has it do something; the line of its answer that has `text` in it.
    #[track_caller]
    pub fn ask(&mut self, command: &str, text: &str) -> String {
        self.tell(command);
        self.wait_for(text)
    }

    /// The value of an expression.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> u64 {
        self.asked += 1;
        let mark = format!("VALUE{} ", self.asked);
        self.tell(&format!(
            "printf \"{mark}%lx\\n\", (unsigned long)({expression})"
        ));
        let line = self.wait_for(&mark);
        let digits = line.rsplit(' ').next().unwrap_or_default();
        u64::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("no number: {line}"))
    }

    /// Ctrl-C.
    #[track_caller]
    pub fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("gdb runs");
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
