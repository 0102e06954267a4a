//! The life of a machine seen from outside: one loop that waits for the vm process, for signals,
//! for control clients and for the end of the grace period. What follows on what is in `life`'s diagram; here
//! is what it sees and does.

pub mod control;
mod identity;
mod life;
mod opening;
mod outcome;
mod restrict;
mod signals;
mod vm_process;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::WaitOptions;
use tracing::Level;
use vmm::control::{self as wire, Call, ControlError, Refusal, Reply, Verdict};
use vmm::footprint::Settling;

pub(crate) use self::control::{Asker, ClientCall, LAUNCHER, LauncherEvent};
pub use self::control::{ControlServer, Ends};
pub use self::identity::{ChooseUserError, choose_user};
pub(crate) use self::life::{Effect as LifeEffect, Input as LifeInput, Life};
pub use self::outcome::{Death, Outcome};
pub use self::restrict::{Remains, RestrictError, restrict_launcher};
pub(crate) use self::restrict::{filter, restrict_monitor, restrict_service};
pub(crate) use self::signals::Signal;
pub use self::signals::Signals;
pub use self::vm_process::{VmProcess, VmProcessError};

use self::life::{Effect, Input};
use self::opening::{Opened, Opening};
use crate::boot_trace::BootTrace;
use crate::logging;
use crate::opener::Opener;
use crate::resources::BootReader;

/// While there are lost messages to tell of, how often that is tried.
const TELL_LOST_EVERY: Duration = Duration::from_secs(1);

/// What [`supervise`] is to do.
#[derive(Debug)]
pub struct Orders {
    /// Time between the power button and a forced stop.
    pub grace: Duration,
    /// A guest reset ends the run.
    pub exit_on_reboot: bool,
    /// A guest that crashes is dumped.
    pub crash_dump: bool,
    /// Reads the kernel for a machine that boots from a disk.
    pub boot_reader: Option<BootReader>,
    /// Where the steps of the start are to be written.
    pub boot_trace: Option<BootTrace>,
}

struct Supervisor<'a> {
    vm: &'a VmProcess,
    signals: &'a Signals,
    control: Option<ControlServer>,
    boot_trace: Option<BootTrace>,
    opening: Opening,
    boot_reader: Option<BootReader>,
    /// The boot reader was asked and has not answered.
    reads_boot: bool,
    settling: Settling,
    life: Life,
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
        signals,
        control,
        boot_trace: orders.boot_trace,
        opening: Opening::new(opener),
        boot_reader: orders.boot_reader,
        reads_boot: false,
        settling: Settling::default(),
        life: Life::new(orders.grace, orders.exit_on_reboot).dumping(orders.crash_dump),
    };
    // A vm process that ended before signals were waited for.
    supervisor.reap();
    while !supervisor.life.is_over() {
        supervisor.turn();
    }
    let (outcome, status) = supervisor.life.outcome();
    if let Some(control) = &mut supervisor.control {
        control.broadcast(&LauncherEvent::ended(&outcome, status));
    }
    outcome
}

/// What is ready.
struct Ready {
    signals: bool,
    vm: bool,
    opener: bool,
    boot_reader: bool,
    /// As [`ControlServer::poll_fds`] has them.
    clients: Vec<bool>,
}

impl Supervisor<'_> {
    /// Waits for something to happen and reacts to it; to signals first.
    fn turn(&mut self) {
        let ready = match self.wait() {
            Ok(ready) => ready,
            Err(errno) => return self.give_up(errno),
        };
        if ready.signals {
            self.read_signals();
        }
        if ready.vm {
            self.read_report();
        }
        if ready.opener {
            for opened in self.opening.receive() {
                self.go_on(opened);
            }
        }
        if ready.boot_reader {
            self.take_kernel();
        }
        let machine = self.life.machine();
        let calls = (self.control.as_mut()).map(|control| control.serve(&ready.clients, machine));
        for call in calls.unwrap_or_default() {
            self.serve(call);
        }
        self.step(Input::Tick);
        logging::tell_lost();
        self.settling.settle(Instant::now());
    }

    /// A call that names a file waits until it is open.
    fn serve(&mut self, mut call: ClientCall) {
        match call.open.take() {
            None => self.step(Input::Call(call)),
            Some(file) => {
                let opened = self.opening.order(call, file);
                opened.into_iter().for_each(|opened| self.go_on(opened));
            }
        }
    }

    /// Serves a call that has its file, or refuses one that cannot have it.
    fn go_on(&mut self, (call, result): Opened) {
        match (result, &mut self.control) {
            (Ok(()), _) => self.step(Input::Call(call)),
            (Err(refusal), Some(control)) => {
                let Asker { client, id } = call.asker;
                let verdict = Verdict::Error(refusal);
                control.reply(client, &Reply { id, verdict });
            }
            (Err(_), None) => {}
        }
    }

    fn wait(&self) -> rustix::io::Result<Ready> {
        let mut fds = vec![PollFd::new(self.signals, PollFlags::IN)];
        if self.life.listens() {
            fds.push(PollFd::from_borrowed_fd(self.vm.socket(), PollFlags::IN));
        }
        let opener = self.opening.fd().map(|fd| {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            fds.len() - 1
        });
        let boot_reader = self.boot_reader.as_ref().filter(|_| self.reads_boot);
        let boot_reader = boot_reader.map(|reader| {
            fds.push(PollFd::new(reader, PollFlags::IN));
            fds.len() - 1
        });
        let first_client = fds.len();
        fds.extend(self.control.iter().flat_map(ControlServer::poll_fds));
        match poll(&mut fds, self.timeout().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        Ok(Ready {
            signals: ready[0],
            vm: self.life.listens() && ready[1],
            opener: opener.is_some_and(|index| ready[index]),
            boot_reader: boot_reader.is_some_and(|index| ready[index]),
            clients: ready[first_client..].to_vec(),
        })
    }

    fn timeout(&self) -> Option<Timespec> {
        let deadlines = self.life.deadline().into_iter();
        let deadline = deadlines.chain(self.settling.due()).min();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let lost = logging::has_lost().then_some(TELL_LOST_EVERY);
        let rest = self.control.as_ref().and_then(ControlServer::rest);
        let left = left.into_iter().chain(lost).chain(rest).min()?;
        // Rounded up by the kernel's clock granularity anyway; never negative.
        Some(Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        })
    }

    /// Not a busy loop: only the child's end is left to wait for.
    fn give_up(&mut self, errno: Errno) {
        tracing::error!("cannot wait for events: {errno}");
        self.vm.kill();
        let ended = rustix::process::waitpid(Some(self.vm.pid()), WaitOptions::empty());
        if let Ok(Some((_, status))) = ended {
            self.step(Input::Reaped(status.into()));
        }
        self.step(Input::Closed);
    }

    fn read_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            match signal {
                Signal::Child => self.reap(),
                Signal::Stop(name) => self.step(Input::Signal(name)),
            }
        }
    }

    /// Reaps every child; as pid 1 of a container that includes processes that lost their parent.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == self.vm.pid() {
                self.step(Input::Reaped(status.into()));
            }
        }
    }

    fn read_report(&mut self) {
        match self.vm.receive() {
            Ok(Some(report)) => {
                tracing::debug!("{report:?}");
                self.step(Input::Report(report));
            }
            Ok(None) => self.step(Input::Closed),
            Err(error) => self.step(Input::Broken(crate::report::chain(&error))),
        }
    }

    fn step(&mut self, input: Input) {
        let life = std::mem::take(&mut self.life);
        let (life, effects) = life.step(Instant::now(), input);
        self.life = life;
        for effect in effects {
            self.apply(effect);
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Send(call, descriptors) => self.send(&call, &descriptors),
            Effect::Reply { client, reply } => {
                let control = &mut self.control;
                control
                    .iter_mut()
                    .for_each(|control| control.reply(client, &reply));
            }
            Effect::Broadcast(notice) => {
                let control = &mut self.control;
                control
                    .iter_mut()
                    .for_each(|control| control.broadcast(&notice));
            }
            Effect::Kill => self.vm.kill(),
            // From now on there is little to do.
            Effect::Running => self.settling.begin(Instant::now()),
            Effect::BootTrace { marks, guest } => {
                let trace = &mut self.boot_trace;
                trace
                    .iter_mut()
                    .for_each(|trace| trace.write(&marks, &guest));
            }
            Effect::ReadBoot => self.ask_for_kernel(),
            Effect::Log(level, text) => log(level, &text),
        }
    }

    fn ask_for_kernel(&mut self) {
        let asked = self.boot_reader.as_ref().map(BootReader::ask);
        let error = match asked {
            Some(Ok(())) => {
                self.reads_boot = true;
                return;
            }
            Some(Err(error)) => crate::report::chain(&error),
            None => "this machine does not boot from a disk".to_owned(),
        };
        self.step(Input::Kernel(Err(error)));
    }

    fn take_kernel(&mut self) {
        self.reads_boot = false;
        if let Some(reader) = &self.boot_reader {
            let kernel = reader.answer();
            self.step(Input::Kernel(
                kernel.map_err(|error| crate::report::chain(&error)),
            ));
        }
    }

    /// Never waits: a vm process that does not read must not keep the launcher from ending it.
    fn send(&mut self, call: &Call, descriptors: &[OwnedFd]) {
        if let Err(refusal) = send_call(self.vm.socket(), call, descriptors) {
            let id = call.id;
            self.step(Input::NotSent { id, refusal });
        }
    }
}

/// Sends the vm process a call if there is room for it.
pub(crate) fn send_call(
    socket: BorrowedFd<'_>,
    call: &Call,
    descriptors: &[OwnedFd],
) -> Result<(), Refusal> {
    let fds: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
    match wire::try_send(socket, call, &fds) {
        Ok(()) => Ok(()),
        Err(ControlError::Socket(error)) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(Refusal::Busy)
        }
        // Its end will be seen by the loop.
        Err(_) => Err(Refusal::Ended),
    }
}

/// The level of an event is a constant of its place.
pub(crate) fn log(level: Level, text: &str) {
    match level {
        Level::ERROR => tracing::error!("{text}"),
        Level::WARN => tracing::warn!("{text}"),
        Level::INFO => tracing::info!("{text}"),
        _ => tracing::debug!("{text}"),
    }
}
