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
mod opening;
mod outcome;
mod restrict;
mod signals;
mod vm_process;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus};
use vmm::control::{
    Call, Command, ControlError, Event, MachineState, Notice, Refusal, Reply, Report, Verdict,
};
use vmm::footprint;

pub use self::control::ControlServer;
pub use self::identity::{ChooseUserError, choose_user};
pub use self::outcome::Outcome;
pub(crate) use self::outcome::syscall_name;
pub use self::restrict::{Remains, RestrictError, file_size_limit, restrict_launcher};
pub use self::signals::Signals;
pub use self::vm_process::{VmProcess, VmProcessError};

use self::control::{Asker, ClientCall, LauncherEvent};
use self::opening::{Opened, Opening};
use self::signals::Signal;
use crate::boot_trace::BootTrace;
use crate::opener::Opener;

/// How long the vm process may take to end once it is told to, or once its guest has ended.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Calls of one client that the vm process has not answered. Far fewer than its socket has room for.
const MAX_CALLS: usize = 16;

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

/// Time between two presses of the power button: a guest whose user space is not there yet loses one.
/// KubeVirt's node agent presses again, too, but a pod's SIGTERM comes once.
const PRESS_AGAIN: Duration = Duration::from_secs(2);

/// How far the machine is from being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Not,
    /// The power button is pressed until then, the next time at `again`.
    Asked {
        until: Instant,
        again: Instant,
    },
    Forced {
        until: Instant,
    },
    Killed,
}

struct Supervisor<'a> {
    vm: &'a VmProcess,
    orders: Orders,
    control: Option<ControlServer>,
    opening: Opening,
    state: MachineState,
    /// Calls that the vm process has not answered, by the number under which it got them.
    asked: BTreeMap<u64, Asker>,
    next_call: u64,
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
    opener: Option<Opener>,
) -> Outcome {
    let mut supervisor = Supervisor {
        vm,
        orders,
        control,
        opening: Opening::new(opener),
        state: MachineState::Starting,
        asked: BTreeMap::new(),
        next_call: 1,
        stop: Stop::Not,
        stopped: false,
        outcome: None,
        status: None,
        socket_open: true,
    };
    // A vm process that ended before signals were waited for.
    supervisor.reap();
    while supervisor.status.is_none() || supervisor.socket_open {
        supervisor.turn(signals);
    }
    let (mut control, status) = (supervisor.control.take(), supervisor.status);
    let outcome = supervisor.outcome();
    if let Some(control) = &mut control {
        control.broadcast(&LauncherEvent::ended(&outcome, status));
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
        let opener = self.opening.fd().map(|fd| {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            fds.len() - 1
        });
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
        if opener.is_some_and(|index| ready[index]) {
            for opened in self.opening.receive() {
                self.go_on(opened);
            }
        }
        for call in self
            .control
            .as_mut()
            .map(|control| control.serve(&ready[first_client..], self.state))
            .unwrap_or_default()
        {
            self.serve(call);
        }
        self.check_deadline();
    }

    fn timeout(&self) -> Option<Timespec> {
        let until = match self.stop {
            Stop::Asked { until, again } => until.min(again),
            Stop::Forced { until } => until,
            Stop::Not | Stop::Killed => return None,
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
                (Signal::Stop(name), Stop::Not) if self.state == MachineState::Starting => {
                    tracing::info!("{name}: there is no guest yet, stopping at once");
                    self.stopped = true;
                    self.kill();
                }
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
        let report = match self.vm.receive() {
            Ok(Some(report)) => report,
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
        tracing::debug!("{report:?}");
        match report {
            Report::Reply(reply) => self.pass_on(reply),
            Report::Notice(notice) => {
                if let Some(control) = &mut self.control {
                    control.broadcast(&notice);
                }
                let Notice { event, state } = notice;
                self.state = state;
                self.note(event);
            }
        }
    }

    /// Passes the vm process's answer on to who asked, if it was not the launcher itself.
    fn pass_on(&mut self, reply: Reply) {
        if let Some(asker) = self.asked.remove(&reply.id) {
            self.reply(asker, reply.verdict);
        } else if let Verdict::Error(refusal) = &reply.verdict {
            tracing::debug!("{refusal}");
        }
    }

    fn reply(&mut self, asker: Asker, verdict: Verdict) {
        if let Some(control) = &mut self.control {
            let id = asker.id;
            control.reply(asker.client, &Reply { id, verdict });
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            // From now on there is little to do.
            Event::Running => footprint::release_start_code(),
            Event::Paused => {}
            Event::Reset if self.orders.exit_on_reboot => self.end(Outcome::Rebooted),
            Event::Reset => tracing::info!("the guest was reset"),
            Event::Stopped => self.end(Outcome::Stopped),
            Event::GuestShutdown => self.end(Outcome::PoweredOff),
            Event::GuestCrashed(report) => self.end(Outcome::Crashed(report)),
            Event::Refused { causes } => self.end(Outcome::Refused { causes }),
            Event::Shortage { of, causes } => self.end(Outcome::Shortage { of, causes }),
            Event::InternalError { causes } => self.end(Outcome::Failed { causes }),
            Event::SeccompViolation { role, syscall } => {
                self.end(Outcome::Violation { role, syscall });
            }
            Event::Panicked {
                thread,
                message,
                place,
            } => self.end(Outcome::Panicked {
                thread,
                message,
                place,
            }),
            Event::GuestPanicNotice => tracing::warn!("the guest's kernel panicked and goes on"),
            Event::ConsoleEscape => {
                tracing::info!("escape key: stopping at once");
                self.force_stop();
            }
            Event::BootTrace { marks } => {
                let trace = &mut self.orders.boot_trace;
                trace.iter_mut().for_each(|trace| trace.write(&marks));
            }
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

    /// Passes a client's call on. The launcher itself stops the machine, and tells the state of one
    /// that does not listen: not yet, or not any more.
    fn serve(&mut self, mut call: ClientCall) {
        if let Some(file) = call.open.take() {
            if let Some(opened) = self.opening.order(call, file) {
                self.go_on(opened);
            }
            return;
        }
        let ClientCall {
            asker,
            command,
            descriptors,
            ..
        } = call;
        let listens = self.state != MachineState::Starting && self.stop == Stop::Not;
        match command {
            Command::Stop => {
                self.force_stop();
                self.reply(asker, Verdict::Result(MachineState::ShuttingDown.into()));
            }
            Command::Status if !listens => {
                self.reply(asker, Verdict::Result(self.state.into()));
            }
            command => self.ask(asker, command, &descriptors),
        }
    }

    /// Serves a call that has its file, or refuses one that cannot have it.
    fn go_on(&mut self, (call, result): Opened) {
        match result {
            Ok(()) => self.serve(call),
            Err(refusal) => self.reply(call.asker, Verdict::Error(refusal)),
        }
    }

    fn ask(&mut self, asker: Asker, command: Command, descriptors: &[OwnedFd]) {
        let under_way = (self.asked.values()).filter(|known| known.client == asker.client);
        let sent = match under_way.count() < MAX_CALLS {
            true => self.send(command, descriptors),
            false => Err(Refusal::Busy),
        };
        match sent {
            Ok(id) => {
                self.asked.insert(id, asker);
            }
            Err(refusal) => self.reply(asker, Verdict::Error(refusal)),
        }
    }

    fn ask_to_stop(&mut self) {
        self.stopped = true;
        if self.state == MachineState::Paused {
            self.tell(Command::Resume);
        }
        self.tell(Command::PowerButton);
        let now = Instant::now();
        self.stop = Stop::Asked {
            until: now + self.orders.grace,
            again: now + PRESS_AGAIN,
        };
    }

    fn force_stop(&mut self) {
        self.stopped = true;
        match self.stop {
            Stop::Not | Stop::Asked { .. } => {
                self.tell(Command::Stop);
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
            Stop::Asked { until, .. } if until <= Instant::now() => {
                tracing::warn!("the guest did not power off in {:?}", self.orders.grace);
                self.force_stop();
            }
            Stop::Asked { until, again } if again <= Instant::now() => {
                self.tell(Command::PowerButton);
                let again = Instant::now() + PRESS_AGAIN;
                self.stop = Stop::Asked { until, again };
            }
            Stop::Forced { until } if until <= Instant::now() && self.status.is_none() => {
                tracing::warn!("the vm process did not end in time: killing it");
                self.kill();
            }
            _ => {}
        }
    }

    /// Sends a command of the launcher's own.
    fn tell(&mut self, command: Command) {
        // Its end will be seen by the loop; there is nobody to tell.
        let _ = self.send(command, &[]);
    }

    /// Sends a command; the number of the call. Never waits: a vm process that does not read must not
    /// keep the launcher from ending it.
    fn send(&mut self, command: Command, descriptors: &[OwnedFd]) -> Result<u64, Refusal> {
        let id = self.next_call;
        self.next_call += 1;
        let fds: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
        match self.vm.send(&Call { id, command }, &fds) {
            Ok(()) => Ok(id),
            Err(ControlError::Socket(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(Refusal::Busy)
            }
            Err(error) => {
                tracing::debug!("{}", crate::report::chain(&error));
                Err(Refusal::Ended)
            }
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
