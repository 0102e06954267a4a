//! What a machine tells without being asked.

use devices::watchdog::WatchdogAction;
use serde::{Deserialize, Serialize};

use super::command::{MachineState, Reply};
use crate::crash::CrashReport;
use crate::shortage::Shortage;
use crate::trace::Mark;

/// What the vm process sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Report {
    /// Something happened.
    Notice(Notice),
    /// A call is answered.
    Reply(Reply),
}

/// An event, and the state of the machine after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// The machine's state now.
    pub state: MachineState,
}

/// What the host could not do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostError {
    /// Name of the device: a disk's is the VMI's.
    pub device: String,
    /// What was tried: `read`, `write`, `flush`, `discard`, `write zeroes`.
    pub operation: String,
    /// Where in the device, bytes.
    pub offset: u64,
    /// The host's error number.
    pub errno: i32,
    /// The same in words.
    pub message: String,
    /// Errors of this device since the last one that was told; there is at most one a second.
    pub untold: u32,
    /// The machine is paused for it, and tries again when it is resumed (`errorPolicy`).
    pub stops: bool,
}

/// What happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum Event {
    /// The vCPUs run.
    Running,
    /// The vCPUs and devices stand still.
    Paused,
    /// The machine was reset, by its guest or by command; with `exit_on_reboot` the run ends, else it
    /// restarted in place.
    Reset,
    /// The machine was torn down for a reset, and the kernel on its disk is wanted:
    /// [`Command::Boot`](super::Command::Boot).
    BootWanted,
    /// The guest powered off. The last event of a run.
    GuestShutdown,
    /// The guest crashed. The last event of a run.
    GuestCrashed(CrashReport),
    /// The launcher said [`Command::Stop`](super::Command::Stop). The last event of a run.
    Stopped,
    /// The guest's panic device spoke but the guest goes on (crash kernel loaded).
    GuestPanicNotice,
    /// The machine cannot be built of this plan, kernel and disks on this host, and no other try
    /// will end otherwise. The last event of a run.
    Refused {
        /// The error chain, outermost first.
        causes: Vec<String>,
    },
    /// The host, or a limit, has too little for the machine. The last event of a run.
    Shortage {
        /// Of what.
        of: Shortage,
        /// The error chain, outermost first.
        causes: Vec<String>,
    },
    /// The vm process failed. The last event of a run.
    InternalError {
        /// The error chain, outermost first.
        causes: Vec<String>,
    },
    /// A thread of the vm process panicked, and the process dies of SIGABRT.
    Panicked {
        /// The thread's name.
        thread: String,
        /// What it said.
        message: String,
        /// File, line and column.
        place: String,
    },
    /// A thread made a system call that its filter forbids; the process dies of SIGSYS. Written by
    /// the signal handler itself.
    SeccompViolation {
        /// The thread's role.
        role: String,
        /// Number of the system call.
        syscall: u32,
    },
    /// The guest did not reload its watchdog in time.
    WatchdogExpired {
        /// What is done.
        action: WatchdogAction,
    },
    /// The host cannot do what the guest asked of a device.
    HostError(HostError),
    /// The user typed the console's escape sequence to stop.
    ConsoleEscape,
    /// The steps of the start so far; sent if [`Create`](super::Create) asks for it, when the vCPUs
    /// run, when the console tells of a step, and again at the end.
    BootTrace {
        /// The steps of the vm process in order.
        marks: Vec<Mark>,
        /// Those of its guest.
        guest: Vec<Mark>,
    },
}

impl Event {
    /// With the state after it.
    pub fn with(self, state: MachineState) -> Report {
        Report::Notice(Notice { event: self, state })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_and_replies_are_told_apart() {
        let crash = Event::GuestCrashed(CrashReport::default()).with(MachineState::ShuttingDown);
        let text = json!({"event": "paused", "state": "paused"});
        let paused = Event::Paused.with(MachineState::Paused);
        assert_eq!(serde_json::to_value(&paused).expect("JSON"), text);
        let reply = Report::Reply(Reply {
            id: 1,
            verdict: super::super::Verdict::Result(MachineState::Running.into()),
        });
        for report in [crash, paused, reply] {
            let text = serde_json::to_vec(&report).expect("JSON");
            let back: Report = serde_json::from_slice(&text).expect("a report");
            assert_eq!(back, report);
        }
    }

    /// As `seccomp::violation` writes it without serde.
    #[test]
    fn the_report_of_a_violation_is_understood() {
        let text = r#"{"event":"seccompViolation","role":"vcpu","syscall":107,"state":"ended"}"#;
        let report: Report = serde_json::from_str(text).expect("a report");
        let (role, syscall) = ("vcpu".to_owned(), 107);
        let expected = Event::SeccompViolation { role, syscall };
        assert_eq!(report, expected.with(MachineState::Ended));
    }
}
