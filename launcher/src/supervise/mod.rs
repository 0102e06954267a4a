//! The life of a machine seen from outside: one loop that waits for the vm process, for signals,
//! for control clients and for the end of the grace period.
//!
//! ```text
//!             first signal                grace is over,            2 s are over
//!   running ───────────────▶ asked to ───────────────────▶ forced ─────────────▶ killed
//!      │      (power button)  stop        second signal    (Stop)    (SIGKILL)
//!      └──────────────────────────────────────────────────▶
//!        escape key, `ctl stop`
//! ```
//!
//! In every state the guest may end the run by itself, and the vm process may die of anything. The
//! loop ends when the vm process is reaped and its last message is read.

pub mod control;
mod identity;
mod outcome;
mod restrict;
mod signals;
mod vm_process;

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus};
use vmm::control::{Command, Event};
use vmm::footprint;

pub use self::control::ControlServer;
pub use self::identity::{ChooseUserError, choose_user};
pub use self::outcome::Outcome;
pub use self::restrict::{Remains, RestrictError, file_size_limit, restrict_launcher};
pub use self::signals::Signals;
pub use self::vm_process::{VmProcess, VmProcessError};

use self::control::{Answer, Request, State};
use self::signals::Signal;
use crate::boot_trace::BootTrace;

/// How long the vm process may take to end once it is told to, or once its guest has ended.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// What [`supervise`] is to do.
#[derive(Debug)]
pub struct Orders {
    /// Time between the power button and a forced stop.
    pub grace: Duration,
    /// A guest reset ends the run.
    pub exit_on_reboot: bool,
    /// Where the steps of the start are to be written.
    pub boot_trace: Option<BootTrace>,
}

/// How far the machine is from being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Not,
    Asked { until: Instant },
    Forced { until: Instant },
    Killed,
}

struct Supervisor<'a> {
    vm: &'a VmProcess,
    orders: Orders,
    control: Option<ControlServer>,
    state: State,
    stop: Stop,
    /// Whether something outside of the guest wanted the end.
    stopped: bool,
    /// The machine's last event.
    outcome: Option<Outcome>,
    /// The vm process's wait status.
    status: Option<WaitStatus>,
    socket_open: bool,
}

/// Waits until the vm process is gone and says how the run ended.
pub fn supervise(
    vm: &VmProcess,
    orders: Orders,
    signals: &Signals,
    control: Option<ControlServer>,
) -> Outcome {
    let mut supervisor = Supervisor {
        vm,
        orders,
        control,
        state: State::Starting,
        stop: Stop::Not,
        stopped: false,
        outcome: None,
        status: None,
        socket_open: true,
    };
    while supervisor.status.is_none() || supervisor.socket_open {
        supervisor.turn(signals);
    }
    let (mut control, status) = (supervisor.control.take(), supervisor.status);
    let outcome = supervisor.outcome();
    if let Some(control) = &mut control {
        control.broadcast(&Answer::ended(&outcome, status));
    }
    outcome
}

impl Supervisor<'_> {
    /// Waits for something to happen and reacts to it.
    fn turn(&mut self, signals: &Signals) {
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        if self.socket_open {
            fds.push(PollFd::from_borrowed_fd(self.vm.socket(), PollFlags::IN));
        }
        let first_client = fds.len();
        if let Some(control) = &self.control {
            fds.extend(
                control
                    .fds()
                    .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
            );
        }
        match poll(&mut fds, self.timeout().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                tracing::error!("cannot wait for events: {errno}");
                self.kill();
                // Not a busy loop: only the child's end is left to wait for.
                self.status = rustix::process::waitpid(Some(self.vm.pid()), WaitOptions::empty())
                    .ok()
                    .flatten()
                    .map(|(_, status)| status);
                self.socket_open = false;
                return;
            }
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if ready[0] {
            self.read_signals(signals);
        }
        if self.socket_open && ready[1] {
            self.read_event();
        }
        for request in self
            .control
            .as_mut()
            .map(|control| control.serve(&ready[first_client..]))
            .unwrap_or_default()
        {
            self.serve(request);
        }
        self.check_deadline();
    }

    fn timeout(&self) -> Option<Timespec> {
        let (Stop::Asked { until } | Stop::Forced { until }) = self.stop else {
            return None;
        };
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up by the kernel's clock granularity anyway; never negative.
        Some(Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        })
    }

    fn read_signals(&mut self, signals: &Signals) {
        while let Some(signal) = signals.next() {
            match (signal, self.stop) {
                (Signal::Child, _) => self.reap(),
                (Signal::Stop(name), Stop::Not) if self.outcome.is_none() => {
                    tracing::info!(
                        "{name}: pressing the power button, {:?} of grace",
                        self.orders.grace
                    );
                    self.ask_to_stop();
                }
                (Signal::Stop(name), _) => {
                    tracing::info!("{name}: stopping at once");
                    self.force_stop();
                }
            }
        }
    }

    /// Reaps every child; as pid 1 of a container that includes processes that lost their parent.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == self.vm.pid() {
                self.status = Some(status);
            }
        }
    }

    fn read_event(&mut self) {
        let event = match self.vm.receive() {
            Ok(Some(event)) => event,
            Ok(None) => {
                self.socket_open = false;
                self.expect_end();
                return;
            }
            Err(error) => {
                tracing::error!("{}", crate::report::chain(&error));
                self.socket_open = false;
                self.force_stop();
                return;
            }
        };
        tracing::debug!("{event:?}");
        if let Some(control) = &mut self.control {
            control.broadcast(&event);
        }
        self.note(event);
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Running => {
                self.state = State::Running;
                // From now on there is little to do.
                footprint::release_start_code();
            }
            Event::Paused => self.state = State::Paused,
            Event::Reset if self.orders.exit_on_reboot => self.end(Outcome::Rebooted),
            Event::Reset => tracing::info!("the guest was reset"),
            Event::Stopped => self.end(Outcome::Stopped),
            Event::GuestShutdown => self.end(Outcome::PoweredOff),
            Event::GuestCrashed(report) => self.end(Outcome::Crashed(report)),
            Event::Refused { causes } => self.end(Outcome::Refused { causes }),
            Event::InternalError { causes } => self.end(Outcome::Failed { causes }),
            Event::SeccompViolation { role, syscall } => {
                self.end(Outcome::Violation { role, syscall });
            }
            Event::GuestPanicNotice => tracing::warn!("the guest's kernel panicked and goes on"),
            Event::ConsoleEscape => {
                tracing::info!("escape key: stopping at once");
                self.force_stop();
            }
            Event::BootTrace { marks } => {
                let trace = &mut self.orders.boot_trace;
                trace.iter_mut().for_each(|trace| trace.write(&marks));
            }
            Event::Stats(_) => {}
        }
    }

    /// The machine's last event: the process must follow soon.
    fn end(&mut self, outcome: Outcome) {
        self.outcome.get_or_insert(outcome);
        self.expect_end();
    }

    fn expect_end(&mut self) {
        if !matches!(self.stop, Stop::Forced { .. } | Stop::Killed) {
            self.stop = Stop::Forced {
                until: Instant::now() + END_TIMEOUT,
            };
        }
    }

    fn serve(&mut self, request: Request) {
        let Some(command) = request.command() else {
            let answer = match request {
                Request::Status => Answer::Status { state: self.state },
                _ => {
                    self.force_stop();
                    return;
                }
            };
            self.control
                .iter_mut()
                .for_each(|control| control.broadcast(&answer));
            return;
        };
        self.send(&command);
    }

    fn ask_to_stop(&mut self) {
        self.stopped = true;
        if self.state == State::Paused {
            self.send(&Command::Resume);
        }
        self.send(&Command::PowerButton);
        self.stop = Stop::Asked {
            until: Instant::now() + self.orders.grace,
        };
    }

    fn force_stop(&mut self) {
        self.stopped = true;
        match self.stop {
            Stop::Not | Stop::Asked { .. } => {
                self.send(&Command::Stop);
                self.stop = Stop::Forced {
                    until: Instant::now() + END_TIMEOUT,
                };
            }
            Stop::Forced { .. } => self.kill(),
            Stop::Killed => {}
        }
    }

    fn kill(&mut self) {
        self.stop = Stop::Killed;
        self.vm.kill();
    }

    fn check_deadline(&mut self) {
        match self.stop {
            Stop::Asked { until } if until <= Instant::now() => {
                tracing::warn!("the guest did not power off in {:?}", self.orders.grace);
                self.force_stop();
            }
            Stop::Forced { until } if until <= Instant::now() && self.status.is_none() => {
                tracing::warn!("the vm process did not end in time: killing it");
                self.kill();
            }
            _ => {}
        }
    }

    fn send(&mut self, command: &Command) {
        if let Err(error) = self.vm.send(command) {
            // Its end will be seen by the loop; there is nobody to tell.
            tracing::debug!("{}", crate::report::chain(&error));
        }
    }

    fn outcome(self) -> Outcome {
        match (self.outcome, self.stopped, self.status) {
            (Some(outcome), _, _) => outcome,
            (None, true, _) => Outcome::Stopped,
            (None, false, Some(status)) => Outcome::Died(status),
            (None, false, None) => Outcome::Lost,
        }
    }
}
