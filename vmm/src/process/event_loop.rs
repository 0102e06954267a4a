//! The one thread that owns the VM's state: it waits for the launcher, the guest's signals, the
//! vCPUs and the console, and acts on one event at a time.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use devices::legacy::power::Signal;
use devices::thread::ThreadHook;
use rustix::event::epoll::{self, CreateFlags, Event as EpollEvent, EventData, EventFlags};
use rustix::io::Errno;
use serde_json::json;

use super::inputs::Inputs;
use super::{ProcessError, causes};
use crate::console::{Console, InputResult};
use crate::control::{
    self, Answer, Call, Command, CrashReport, Event, MachineState, Refusal, Reply, Report, Stats,
    Verdict,
};
use crate::footprint;
use crate::machine::{Machine, Resources, Started};
use crate::plan::MachinePlan;
use crate::snapshot::SnapshotError;
use crate::trace;
use crate::vcpu::VcpuEvent;

/// What an epoll event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
enum Token {
    Control,
    Signals,
    Vcpus,
    ConsoleQueue,
    ConsoleInput,
    ConsoleOutput,
    ConsoleListener,
}

impl Token {
    const ALL: [Self; 7] = [
        Self::Control,
        Self::Signals,
        Self::Vcpus,
        Self::ConsoleQueue,
        Self::ConsoleInput,
        Self::ConsoleOutput,
        Self::ConsoleListener,
    ];

    fn of(event: &EpollEvent) -> Option<Self> {
        let data = event.data.u64();
        Self::ALL.into_iter().find(|token| *token as u64 == data)
    }
}

/// Counters that were asked for, or why a command was not obeyed.
type Obeyed = Result<Option<Box<Stats>>, Refusal>;

/// The event loop and all it owns.
pub(super) struct Process<'a> {
    socket: BorrowedFd<'a>,
    epoll: OwnedFd,
    plan: MachinePlan,
    resources: Resources,
    console: Console,
    exit_on_reboot: bool,
    hook: ThreadHook,
    /// `None` only while a reset is under way and after the end.
    machine: Option<Machine>,
    paused: bool,
    /// The launcher knows that this machine's guest panicked and went on; a guest can say so
    /// without end.
    panic_noted: bool,
    /// Tell the launcher the steps of the start.
    pub(super) send_boot_trace: bool,
    /// The console's input is in the epoll set.
    input_watched: bool,
}

impl<'a> Process<'a> {
    pub(super) fn new(
        socket: BorrowedFd<'a>,
        inputs: Inputs,
        machine: Machine,
        hook: ThreadHook,
    ) -> Result<Self, ProcessError> {
        let process = Self {
            socket,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            plan: inputs.plan,
            resources: inputs.resources,
            console: inputs.console,
            exit_on_reboot: inputs.exit_on_reboot,
            hook,
            machine: Some(machine),
            paused: false,
            panic_noted: false,
            send_boot_trace: false,
            input_watched: false,
        };
        process.watch(process.socket, Token::Control)?;
        process.watch(process.resources.signals.as_fd(), Token::Signals)?;
        process.watch(process.console.queue().as_fd(), Token::ConsoleQueue)?;
        if let Some(listener) = process.console.listener() {
            process.watch(listener, Token::ConsoleListener)?;
        }
        Ok(process)
    }

    fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> rustix::io::Result<()> {
        let flags = match token {
            Token::ConsoleOutput => EventFlags::OUT,
            _ => EventFlags::IN,
        };
        epoll::add(&self.epoll, fd, EventData::new_u64(token as u64), flags)
    }

    pub(super) fn run(&mut self) -> Result<Event, ProcessError> {
        self.watch_vcpus()?;
        self.watch_input();
        if self.plan.start_paused {
            self.paused = true;
            self.send(&Event::Paused)?;
        } else {
            self.start();
            self.send(&Event::Running)?;
        }
        trace::mark("running");
        self.send_boot_trace()?;
        footprint::release_start_code();
        let mut events = Vec::with_capacity(Token::ALL.len());
        loop {
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            for event in &events {
                if let Some(token) = Token::of(event)
                    && let Some(last) = self.handle(token)?
                {
                    self.send_boot_trace()?;
                    return Ok(last);
                }
            }
        }
    }

    /// Ends the machine, completing requests in flight, and writes out the console.
    pub(super) fn end(&mut self) {
        if let Some(machine) = self.machine.take() {
            machine.stop();
        }
        self.console.drain();
    }

    fn start(&mut self) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        let kvm = self.resources.hypervisor.kvm();
        if machine.start(kvm) == Started::Restored {
            for device in &self.resources.devices {
                if let Err(error) = device.spec.announce() {
                    tracing::warn!(%error, "cannot tell the network where the guest is now");
                }
            }
        }
    }

    fn send(&self, event: &Event) -> Result<(), ProcessError> {
        let report = event.clone().with(self.state());
        Ok(control::send(self.socket, &report, &[])?)
    }

    fn state(&self) -> MachineState {
        match self.paused {
            true => MachineState::Paused,
            false => MachineState::Running,
        }
    }

    fn send_boot_trace(&self) -> Result<(), ProcessError> {
        if self.send_boot_trace {
            let marks = trace::marks();
            self.send(&Event::BootTrace { marks })?;
        }
        Ok(())
    }

    /// Handles one source; the last event if the run is over.
    fn handle(&mut self, token: Token) -> Result<Option<Event>, ProcessError> {
        match token {
            Token::Control => return self.command(),
            Token::Signals => return self.signals(),
            Token::Vcpus => return self.vcpu_event(),
            Token::ConsoleQueue => {
                self.console.queue().acknowledge();
                self.watch_input();
                self.write_console();
            }
            Token::ConsoleOutput => {
                self.unwatch_output();
                self.write_console();
            }
            Token::ConsoleInput => return self.read_console(),
            Token::ConsoleListener => self.accept_console()?,
        }
        Ok(None)
    }

    fn command(&mut self) -> Result<Option<Event>, ProcessError> {
        let (call, fds) = control::receive::<Call>(self.socket)?;
        let (verdict, last) = match (call.command.descriptors(), fds.len()) {
            (expected, sent) if expected == sent => self.obey(call.command, fds)?,
            (expected, sent) => {
                let refusal = Refusal::Descriptors { expected, sent };
                (Err(refusal), None)
            }
        };
        let verdict = match verdict {
            Ok(stats) => {
                let state = self.state();
                Verdict::Result(Answer { state, stats })
            }
            Err(refusal) => Verdict::Error(refusal),
        };
        let reply = Reply {
            id: call.id,
            verdict,
        };
        control::send(self.socket, &Report::Reply(reply), &[])?;
        Ok(last)
    }

    /// What to answer, and the last event if the run is over.
    fn obey(
        &mut self,
        command: Command,
        fds: Vec<OwnedFd>,
    ) -> Result<(Obeyed, Option<Event>), ProcessError> {
        let Some(machine) = &mut self.machine else {
            return Ok((Err(Refusal::Ended), None));
        };
        let mut stats = None;
        match command {
            Command::Pause => {
                if !self.paused {
                    machine.pause();
                    self.paused = true;
                    self.send(&Event::Paused)?;
                }
            }
            Command::Resume => {
                if self.paused {
                    machine.resume(self.resources.hypervisor.kvm());
                    self.paused = false;
                    self.send(&Event::Running)?;
                }
            }
            Command::PowerButton => machine.press_power_button(),
            Command::Reset => return Ok((Ok(None), self.reset()?)),
            Command::Stop => return Ok((Ok(None), Some(Event::Stopped))),
            Command::Snapshot { stop } => {
                if !self.paused {
                    machine.pause();
                    self.paused = true;
                    self.send(&Event::Paused)?;
                }
                let written = self.write_snapshot(fds).map_err(|error| Refusal::Failed {
                    causes: causes(&error),
                });
                let last = (stop && written.is_ok()).then_some(Event::Stopped);
                return Ok((written.map(|()| None), last));
            }
            Command::Status => {}
            Command::Stats => {
                stats = Some(Box::new(Stats {
                    vcpu_time_ns: machine.vcpus().cpu_times(),
                    vcpu_exits: machine.vcpus().exits(),
                    memory_resident: self.resources.ram.resident(),
                    devices: machine.device_stats(),
                }));
            }
            Command::SetLink { nic, up } => {
                let order = json!({"command": "setLink", "up": up});
                if machine.command(&nic, order).is_none() {
                    return Ok((Err(Refusal::UnknownNic { name: nic }), None));
                }
            }
            Command::Device { name, order } => match machine.command(&name, order) {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    let causes = super::causes(&error);
                    return Ok((Err(Refusal::Failed { causes }), None));
                }
                None => return Ok((Err(Refusal::UnknownDevice { name }), None)),
            },
        }
        Ok((Ok(stats), None))
    }

    /// Writes the machine, which is paused, to the state and the RAM file.
    fn write_snapshot(&self, fds: Vec<OwnedFd>) -> Result<(), SnapshotError> {
        let mut files = fds.into_iter().map(File::from);
        let (Some(machine), Some(mut state), Some(mut ram)) =
            (&self.machine, files.next(), files.next())
        else {
            return Err(SnapshotError::NotPaused);
        };
        let saved = machine.save(&self.plan, &self.resources)?;
        self.resources
            .ram
            .write_to(&mut ram)
            .map_err(SnapshotError::file("write", "RAM"))?;
        // Last, so that a whole state file has its RAM.
        saved.write(&mut state)
    }

    fn signals(&mut self) -> Result<Option<Event>, ProcessError> {
        let pending = self.resources.signals.take();
        let is_pending = |signal: Signal| pending & signal as u32 != 0;
        if is_pending(Signal::Panicked) {
            let reason = "the guest kernel panicked (pvpanic)".to_owned();
            return Ok(Some(Event::GuestCrashed(CrashReport {
                reason,
                ..Default::default()
            })));
        }
        if is_pending(Signal::CrashLoaded) && !self.panic_noted {
            self.panic_noted = true;
            self.send(&Event::GuestPanicNotice)?;
        }
        if is_pending(Signal::PowerOff) {
            return Ok(Some(Event::GuestShutdown));
        }
        if is_pending(Signal::Reset) {
            return self.reset();
        }
        Ok(None)
    }

    fn vcpu_event(&mut self) -> Result<Option<Event>, ProcessError> {
        let event = self
            .machine
            .as_ref()
            .and_then(|machine| machine.vcpus().take_event());
        match event {
            Some(VcpuEvent::Crashed(report)) => Ok(Some(Event::GuestCrashed(*report))),
            Some(VcpuEvent::Failed(error)) => Err(ProcessError::Vcpu(error)),
            None => Ok(None),
        }
    }

    /// Restarts in place: ends this machine and builds another from the same resources.
    fn reset(&mut self) -> Result<Option<Event>, ProcessError> {
        if self.exit_on_reboot {
            return Ok(Some(Event::Reset));
        }
        if let Some(machine) = self.machine.take() {
            let _ = epoll::delete(&self.epoll, machine.vcpus().event_fd());
            machine.stop();
        }
        self.resources.signals.take();
        self.resources.ram.clear()?;
        self.machine = Some(Machine::build(
            &self.plan,
            &mut self.resources,
            &self.hook,
            None,
        )?);
        self.watch_vcpus()?;
        self.panic_noted = false;
        if !self.paused {
            self.start();
        }
        tracing::info!("guest restarted in place");
        self.send(&Event::Reset)?;
        Ok(None)
    }

    fn watch_vcpus(&self) -> Result<(), ProcessError> {
        let Some(machine) = &self.machine else {
            return Ok(());
        };
        self.watch(machine.vcpus().event_fd(), Token::Vcpus)?;
        Ok(())
    }

    /// Watches the console's input while the UART has room. A regular file cannot be watched; it
    /// is read whenever there is room instead.
    fn watch_input(&mut self) {
        let Some(machine) = &self.machine else { return };
        if self.input_watched || machine.serial().input_room() == 0 {
            return;
        }
        match self
            .console
            .input()
            .map(|input| self.watch(input, Token::ConsoleInput))
        {
            Some(Ok(())) => self.input_watched = true,
            Some(Err(_)) if self.console.read_input(machine.serial()) == InputResult::Closed => {
                self.console.close_input();
            }
            Some(Err(_)) | None => {}
        }
    }

    fn unwatch_input(&mut self) {
        if self.input_watched
            && let Some(input) = self.console.input()
        {
            let _ = epoll::delete(&self.epoll, input);
        }
        self.input_watched = false;
    }

    fn read_console(&mut self) -> Result<Option<Event>, ProcessError> {
        let Some(machine) = &self.machine else {
            return Ok(None);
        };
        if machine.serial().input_room() == 0 {
            self.unwatch_input();
            return Ok(None);
        }
        match self.console.read_input(machine.serial()) {
            InputResult::Open => {}
            InputResult::Closed => {
                self.unwatch_input();
                self.unwatch_output();
                self.console.close_input();
                self.accept_console()?;
            }
            InputResult::Stop => self.send(&Event::ConsoleEscape)?,
        }
        Ok(None)
    }

    fn accept_console(&mut self) -> Result<(), ProcessError> {
        // Without this, a second client in the backlog would wake the loop for ever.
        if let Some(listener) = self.console.listener() {
            let _ = epoll::delete(&self.epoll, listener);
        }
        if self.console.accept() {
            self.watch_input();
            self.write_console();
        } else if let Some(listener) = self.console.listener()
            && !self.console.has_client()
        {
            self.watch(listener, Token::ConsoleListener)?;
        }
        Ok(())
    }

    fn write_console(&mut self) {
        if self.console.write_output()
            && let Some(output) = self.console.output()
        {
            // Already watched is as good.
            let _ = self.watch(output, Token::ConsoleOutput);
        }
    }

    fn unwatch_output(&self) {
        if let Some(output) = self.console.output() {
            let _ = epoll::delete(&self.epoll, output);
        }
    }
}
