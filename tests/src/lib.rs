//! What the tests in `vm/` need to run podvisor's real binary with real guests: a machine to ask
//! for ([`vmi`]), a process to watch ([`run`]), and a host around it ([`image`], [`netns`]).
//!
//! The binary is the one named by `PODVISOR` (else `target/podvisor`), the guests those in
//! the directory `GUEST_OUT` (else `target/guest`); `make vm-tests` builds both. Root and
//! `/dev/kvm` are required: without them tests fail, they do not skip.
//!
//! Helpers panic at the place of their caller, and what guest and launcher said up to then is
//! printed with the failed test. Nothing sleeps: each wait is for an event, up to [`PATIENCE`].

#![forbid(unsafe_code)]

pub mod control;
pub mod echo;
pub mod elf;
pub mod footprint;
pub mod gdb;
pub mod guest;
pub mod handler;
pub mod image;
pub mod loop_device;
pub mod netns;
pub mod node;
pub mod podman;
pub mod power;
pub mod proc;
pub mod random;
pub mod reason;
pub mod rules;
pub mod run;
pub mod sidecar;
pub mod transcript;
pub mod tshark;
pub mod vmi;

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Longest wait for one event: far beyond what a guest needs on a loaded machine, since a Linux
/// whose kernel is interpreted boots in half a minute when it has a CPU to itself.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A port of 127.0.0.1 that nobody listens on at this moment.
#[track_caller]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Runs a command of the host and returns its standard output.
#[track_caller]
pub fn host(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("Cannot run {program}: {error}"));
    succeeded(program, args, output)
}

#[track_caller]
fn succeeded(program: &str, args: &[&str], output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    let status = output.status;
    assert!(status.success(), "{program} {args:?}: {status}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
