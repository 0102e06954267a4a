//! What the tests of the command share.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The real binary, away from the tests' terminal and environment.
pub fn podvisor() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podvisor"));
    command.env_remove("STANDALONE_VMI").stdin(Stdio::null());
    command
}

/// One of the documented examples.
#[allow(dead_code, reason = "not used by every test binary")]
pub fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name)
}
