//! How a run ended, as an exit status and in words.

use std::fmt::{self, Write};

use rustix::process::{Signal, WaitStatus};
use serde::{Deserialize, Serialize};
use vmm::control::{CrashReport, Event};
use vmm::shortage::Shortage;

use crate::exit::Exit;
use crate::registers;
use crate::report::Plain;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Death {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl Death {
    /// The signal that killed it.
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Killed(signal) => Some(signal),
            Self::Exited(_) => None,
        }
    }
}

impl From<WaitStatus> for Death {
    fn from(status: WaitStatus) -> Self {
        match status.terminating_signal() {
            Some(signal) => Self::Killed(signal),
            None => Self::Exited(status.exit_status().unwrap_or_default()),
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset and that was to end the run.
    Rebooted,
    /// The guest crashed.
    Crashed(CrashReport),
    /// A signal, the escape key or a control client stopped it.
    Stopped,
    /// A control client had it saved, to go on elsewhere or later.
    Saved,
    /// What was asked for cannot be had on this host, or of this kernel or disk image.
    Refused {
        /// The error chain, outermost first.
        causes: Vec<String>,
    },
    /// The host, or a limit, has too little for the machine.
    Shortage {
        /// Of what.
        of: Shortage,
        /// The error chain, outermost first.
        causes: Vec<String>,
    },
    /// The vm process gave up.
    Failed {
        /// The error chain, outermost first.
        causes: Vec<String>,
    },
    /// A thread of the vm process panicked.
    Panicked {
        /// The thread's name.
        thread: String,
        /// What it said.
        message: String,
        /// File, line and column.
        place: String,
    },
    /// A thread of the vm process made a system call that it may not make, and was killed for it.
    Violation {
        /// The thread's role.
        role: String,
        /// Number of the system call.
        syscall: u32,
    },
    /// The vm process ended without a word.
    Died(Death),
    /// The vm process cannot be waited for.
    Lost,
}

impl Outcome {
    /// What it means that this event is the last of a run; none if runs go on after it, or if that depends on what was
    /// asked for.
    pub fn of_last(event: Event) -> Option<Self> {
        Some(match event {
            Event::GuestShutdown => Self::PoweredOff,
            Event::GuestCrashed(report) => Self::Crashed(report),
            Event::Refused { causes } => Self::Refused { causes },
            Event::Shortage { of, causes } => Self::Shortage { of, causes },
            Event::InternalError { causes } => Self::Failed { causes },
            Event::SeccompViolation { role, syscall } => Self::Violation { role, syscall },
            Event::Panicked {
                thread,
                message,
                place,
            } => Self::Panicked {
                thread,
                message,
                place,
            },
            Event::Running
            | Event::Paused
            | Event::Reset
            | Event::BootWanted
            | Event::Stopped
            | Event::GuestPanicNotice
            | Event::WatchdogExpired { .. }
            | Event::HostError(_)
            | Event::ConsoleEscape
            | Event::BootTrace { .. } => return None,
        })
    }

    /// The exit status.
    pub fn exit(&self) -> Exit {
        match self {
            Self::PoweredOff | Self::Rebooted => Exit::Success,
            Self::Crashed(_) => Exit::GuestCrashed,
            Self::Refused { .. } => Exit::Refused,
            Self::Shortage { .. } => Exit::HostResource,
            Self::Stopped | Self::Saved => Exit::Stopped,
            Self::Failed { .. }
            | Self::Panicked { .. }
            | Self::Violation { .. }
            | Self::Died(_)
            | Self::Lost => Exit::Internal,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => write!(f, "The guest powered off."),
            Self::Rebooted => write!(f, "The guest reset itself, which was to end the run."),
            Self::Crashed(report) => write_crash(f, report),
            Self::Stopped => write!(f, "The machine was stopped before its guest powered off."),
            Self::Saved => write!(
                f,
                "The machine was saved, and stopped for its guest to go on from there."
            ),
            Self::Refused { causes } => write!(
                f,
                "The machine cannot be built: {}. Change the VMI or the options that name it.",
                Plain(&causes.join(": "))
            ),
            Self::Shortage { of, causes } => write!(
                f,
                "There is not enough for the machine: {}. {}",
                Plain(&causes.join(": ")),
                of.way_out()
            ),
            Self::Failed { causes } => {
                write!(f, "The machine failed: {}.", Plain(&causes.join(": ")))
            }
            Self::Panicked {
                thread,
                message,
                place,
            } => write!(
                f,
                "Thread {} of the vm process panicked at {}: {}. This is a bug in podvisor.",
                Plain(thread),
                Plain(place),
                Plain(message)
            ),
            Self::Violation { role, syscall } => write!(
                f,
                "The vm process was killed by signal 31 (SIGSYS): a thread of role {} made \
                 system call {syscall} ({}), which its seccomp filter forbids. This is a bug in \
                 podvisor, or its guest broke out of the device models and got no further.",
                Plain(role),
                syscall_name(*syscall)
            ),
            Self::Died(death) => write_death(f, *death),
            Self::Lost => write!(f, "The vm process cannot be waited for."),
        }
    }
}

/// The name of a system call by its number.
pub(crate) fn syscall_name(number: u32) -> &'static str {
    let known = syscalls::Sysno::new(number as usize);
    known.map_or("unknown", |syscall| syscall.name())
}

fn write_death(f: &mut fmt::Formatter<'_>, death: Death) -> fmt::Result {
    let number = match death {
        Death::Killed(signal) => signal,
        Death::Exited(status) => {
            return write!(
                f,
                "The vm process ended with status {status} and did not say why."
            );
        }
    };
    write!(f, "The vm process was killed by signal {number}")?;
    f.write_str(match Signal::from_named_raw(number) {
        Some(Signal::SYS) => {
            " (SIGSYS): it made a system call that its seccomp filter does not allow. This is a \
             bug in podvisor."
        }
        Some(Signal::KILL) => {
            " (SIGKILL): somebody killed it, or the memory limit of the pod was reached."
        }
        Some(Signal::BUS) => {
            " (SIGBUS): guest RAM could not be had; the host is out of huge pages or memory, or a \
             limit on shared memory was reached."
        }
        Some(Signal::ABORT) => " (SIGABRT): see its message above. This is a bug in podvisor.",
        Some(Signal::SEGV) => " (SIGSEGV). This is a bug in podvisor.",
        _ => ".",
    })
}

/// The crash report: where it happened, then the registers, three a line.
fn write_crash(f: &mut fmt::Formatter<'_>, report: &CrashReport) -> fmt::Result {
    write!(f, "The guest crashed: {}", Plain(&report.reason))?;
    let Some(vcpu) = report.vcpu else {
        return f.write_char('.');
    };
    writeln!(f, " (vCPU {vcpu})")?;
    registers::write(
        f,
        report.instruction_pointer,
        &report.instruction,
        &report.registers,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_vm_process_do_not_act_on_a_terminal() {
        let words = "\u{1b}[2J\r\n\u{9b}1m".to_owned();
        let registers = [(words.clone(), 0)].into();
        let outcomes = [
            Outcome::Failed {
                causes: vec![words.clone(), words.clone()],
            },
            Outcome::Refused {
                causes: vec![words.clone()],
            },
            Outcome::Violation {
                role: words.clone(),
                syscall: 0,
            },
            Outcome::Panicked {
                thread: words.clone(),
                message: words.clone(),
                place: words.clone(),
            },
            Outcome::Crashed(CrashReport {
                reason: words,
                vcpu: Some(0),
                registers,
                ..Default::default()
            }),
        ];
        for outcome in outcomes {
            let text = outcome.to_string();
            assert!(text.contains(r"\u{1b}[2J\r\n\u{9b}1m"), "{text:?}");
            let acts = |c: char| c.is_control() && c != '\n';
            assert!(!text.chars().any(acts), "{text:?}");
        }
    }

    #[test]
    fn crash_report() {
        let report = CrashReport {
            reason: "triple fault".to_owned(),
            vcpu: Some(1),
            instruction_pointer: 0xffff_ffff_8100_0000,
            instruction: vec![0x0f, 0x0b],
            registers: [("rip", 0), ("r10", 10), ("cr3", 3), ("r8", 8), ("rax", 1)]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
        };
        let text = Outcome::Crashed(report).to_string();
        let expected = "The guest crashed: triple fault (vCPU 1)\n  \
                        rip 0xffffffff81000000, instruction 0f 0b\n       \
                        rax 0x0000000000000001          r8 0x0000000000000008         \
                        r10 0x000000000000000a\n       cr3 0x0000000000000003";
        assert_eq!(text, expected);
    }
}
