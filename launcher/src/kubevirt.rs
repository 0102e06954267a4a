//! podvisor as the entrypoint of KubeVirt's pods: `virt-launcher-monitor`, `virt-launcher` or `podvisor
//! launcher`, driven by virt-handler (docs/kubevirt.md).
//!
//! ```text
//!   virt-handler ── gRPC ──▶ launcher ── commands ──▶ vm process
//!        ▲                    │  │ order
//!        └── domain events ───┘  └──▶ preparer ── the machine ──▶ vm process
//! ```
//!
//! All processes (with the `monitor` that forks them, opener and connector) are there from the start; nothing of the host is
//! touched before virt-handler asks for a machine.

mod agent;
mod clock;
mod credentials;
mod directories;
mod disk_name;
mod domain;
mod events;
mod flags;
mod head;
mod hooks;
mod hotplug;
mod launcher;
mod messages;
mod monitor;
mod notify;
mod pod;
mod preparer;
mod rpc;
mod stats;
pub mod tools;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::agent::{Heard, hear};
pub(crate) use self::agent::{Ran, run_by_agent};
use self::flags::Flags;
use crate::logging::{self, LogFormat, LogLevel};
use crate::report;

/// Names under which the program is KubeVirt's launcher.
const NAMES: [&str; 2] = ["virt-launcher-monitor", "virt-launcher"];

/// The command that does the same under any name.
const COMMAND: &str = "launcher";

/// The variable that stands for `--v`.
const VERBOSITY: &str = "VIRT_LAUNCHER_LOG_VERBOSITY";

/// What the command line could not be read for.
const BAD_USAGE: u8 = 2;

/// The launcher's arguments, if this program was started as KubeVirt's.
pub fn arguments(words: impl IntoIterator<Item = OsString>) -> Option<Vec<String>> {
    let mut words = words.into_iter();
    let program = words.next()?;
    let name = Path::new(&program).file_name()?.to_str()?;
    if !NAMES.contains(&name) && words.next().is_none_or(|word| word != COMMAND) {
        return None;
    }
    Some(
        words
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
    )
}

/// Runs the pod to its end: the container's exit status.
pub fn main(arguments: Vec<String>) -> ExitCode {
    ExitCode::from(run(arguments))
}

fn run(arguments: Vec<String>) -> u8 {
    let (flags, unknown) = match Flags::parse(arguments) {
        Ok(read) => read,
        Err(reason) => {
            report::print(&reason);
            return BAD_USAGE;
        }
    };
    if let Err(error) = seccomp::jail::close_inherited(&[]) {
        report::print(&format!("Cannot close inherited descriptors: {error}"));
        return 1;
    }
    logging::init(level(&flags), LogFormat::Json);
    vmm::panics::report(None);
    for flag in unknown {
        tracing::info!("{flag:?} means nothing here");
    }
    if flags.uid.is_empty() {
        report::print("--uid is missing: the UID of the VirtualMachineInstance");
        return BAD_USAGE;
    }
    monitor::run(&flags).unwrap_or_else(|error| {
        report::print(&report::chain(&error));
        1
    })
}

/// KubeVirt counts from 0, and 2 is usual.
fn level(flags: &Flags) -> LogLevel {
    let of_environment = std::env::var(VERBOSITY).ok();
    let verbosity = of_environment.and_then(|text| text.trim().parse().ok());
    match verbosity.unwrap_or(flags.verbosity) {
        0..=2 => LogLevel::Info,
        _ => LogLevel::Debug,
    }
}

/// Whether each message of the pod's processes that these bytes are is the same when it is written and read again. For a
/// fuzzer, since any of them may have been taken over.
pub fn messages_last(bytes: &[u8]) -> bool {
    fn lasts<T: DeserializeOwned + Serialize + PartialEq>(bytes: &[u8]) -> bool {
        let Ok(message) = serde_json::from_slice::<T>(bytes) else {
            return true;
        };
        let again = serde_json::to_vec(&message).ok();
        again.and_then(|again| serde_json::from_slice(&again).ok()) == Some(message)
    }
    lasts::<monitor::Word>(bytes)
        && lasts::<monitor::Wish>(bytes)
        && lasts::<preparer::Order>(bytes)
        && lasts::<preparer::Done>(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_s_name_or_first_word_says_what_it_is() {
        let parse = |line: &str| arguments(line.split(' ').map(OsString::from));
        let words = |text: &str| Some(text.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(
            parse("/usr/bin/virt-launcher-monitor --uid u"),
            words("--uid u")
        );
        assert_eq!(parse("virt-launcher --uid u"), words("--uid u"));
        assert_eq!(parse("podvisor launcher --uid u"), words("--uid u"));
        assert_eq!(parse("podvisor run launcher"), None);
        assert_eq!(parse("podvisor"), None);
    }
}
