//! The vm process: receives plan and descriptors, builds the machine, serves its events on this
//! one thread until the guest or the launcher ends it.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use devices::legacy::power::{Signal, Signals};
use devices::legacy::serial::ConsoleQueue;
use devices::thread::{ThreadHook, ThreadRole};
use rustix::event::epoll::{self, CreateFlags, Event as EpollEvent, EventData, EventFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::console::{Console, ConsoleFds, InputResult};
use crate::control::{self, Command, ControlError, CrashReport, Event, FdRole, Stats};
use crate::cpu::VcpuEvent;
use crate::kvm::{self, KvmError};
use crate::machine::{BuildError, Machine, Resources};
use crate::memory::{MemoryError, Ram};
use crate::plan::MachinePlan;

/// Why the vm process failed.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The launcher broke the protocol or went away.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The first message was not [`Command::Create`].
    #[error("The launcher's first command was not \"create\"")]
    Protocol,
    /// The descriptors do not match the plan.
    #[error("The launcher sent no descriptor for the {what}")]
    MissingFd {
        /// What is missing.
        what: String,
    },
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The machine.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The event loop.
    #[error("Cannot wait for events")]
    Epoll(#[source] io::Error),
    /// A vCPU.
    #[error("A vCPU cannot go on")]
    Vcpu(#[source] Box<dyn Error + Send + Sync>),
    /// The thread could not be restricted.
    #[error(transparent)]
    Restrict(#[from] devices::thread::ThreadSetupError),
}

impl From<Errno> for ProcessError {
    fn from(errno: Errno) -> Self {
        Self::Epoll(errno.into())
    }
}

/// What the binary gives to the vm process beside the socket.
pub struct Setup {
    /// Starts logging to stderr: level and whether as JSON.
    pub log: fn(&str, bool),
    /// Restricts each thread; called with [`ThreadRole::EventLoop`] on this one before the
    /// machine is built.
    pub hook: ThreadHook,
}

/// Runs the vm process with its end of the control socket.
pub fn main(socket: OwnedFd, setup: Setup) -> ExitCode {
    ignore_terminal_signals();
    match serve(&socket, setup) {
        Ok(last) => match control::send(socket.as_fd(), &last, &[]) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        // Nobody is left to tell.
        Err(ProcessError::Control(ControlError::Closed)) => ExitCode::FAILURE,
        Err(error) => {
            let causes = causes(&error);
            tracing::error!(?causes, "vm process failed");
            let _ = control::send(socket.as_fd(), &Event::InternalError { causes }, &[]);
            ExitCode::FAILURE
        }
    }
}

/// A terminal sends its signals to both processes; only the launcher acts on them.
fn ignore_terminal_signals() {
    for signal in [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGPIPE,
    ] {
        // Blocking one that is blocked is the only error, and no error to us.
        let _ = vmm_sys_util::signal::block_signal(signal);
    }
}

/// The error's chain, outermost first, without repetitions by transparent wrappers.
fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut causes = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        next = cause.source();
    }
    causes
}

struct Inputs {
    plan: MachinePlan,
    resources: Resources,
    console: Console,
    exit_on_reboot: bool,
}

/// Runs to the end; the last event of the run.
fn serve(socket: &OwnedFd, setup: Setup) -> Result<Event, ProcessError> {
    let (command, fds) = control::receive::<Command>(socket.as_fd())?;
    let Command::Create {
        plan,
        fds: roles,
        log_level,
        log_json,
        exit_on_reboot,
    } = command
    else {
        return Err(ProcessError::Protocol);
    };
    (setup.log)(&log_level, log_json);
    let mut inputs = sort_fds(*plan, roles, fds, exit_on_reboot)?;
    (setup.hook)(ThreadRole::EventLoop)?;
    let machine = Machine::build(&inputs.plan, &mut inputs.resources, &setup.hook)?;
    let mut process = Process::new(socket.as_fd(), inputs, machine, setup.hook)?;
    let last = process.run();
    process.end();
    last
}

/// Pairs each descriptor with its role and wraps it.
fn sort_fds(
    plan: MachinePlan,
    roles: Vec<FdRole>,
    fds: Vec<OwnedFd>,
    exit_on_reboot: bool,
) -> Result<Inputs, ProcessError> {
    let missing = |what: &str| ProcessError::MissingFd {
        what: what.to_owned(),
    };
    let (mut kvm, mut memory, mut kernel, mut initrd) = (None, None, None, None);
    let mut disks: Vec<Option<File>> = plan.disks.iter().map(|_| None).collect();
    let mut taps: Vec<Vec<File>> = plan.nics.iter().map(|_| Vec::new()).collect();
    let mut console = ConsoleFds::default();
    for (role, fd) in roles.into_iter().zip(fds) {
        match role {
            FdRole::Kvm => kvm = Some(fd),
            FdRole::Memory => memory = Some(fd),
            FdRole::Kernel => kernel = Some(File::from(fd)),
            FdRole::Initrd => initrd = Some(File::from(fd)),
            FdRole::Disk { index } => {
                *disks.get_mut(index).ok_or_else(|| missing("right disk"))? = Some(fd.into());
            }
            FdRole::Tap { index } => {
                taps.get_mut(index)
                    .ok_or_else(|| missing("right TAP"))?
                    .push(fd.into());
            }
            FdRole::ConsoleInput => console.input = Some(fd),
            FdRole::ConsoleOutput => console.output = Some(fd),
            FdRole::ConsoleListener => console.listener = Some(fd),
            FdRole::ConsoleLog => console.log = Some(fd.into()),
        }
    }
    let disks = (plan.disks.iter().zip(disks))
        .map(|(disk, file)| file.ok_or_else(|| missing(&format!("disk {:?}", disk.name))))
        .collect::<Result<_, _>>()?;
    for (nic, taps) in plan.nics.iter().zip(&taps) {
        if taps.len() != usize::from(nic.queue_pairs) {
            return Err(missing(&format!("network interface {:?}", nic.name)));
        }
    }
    let queue = Arc::new(ConsoleQueue::new().map_err(ProcessError::Epoll)?);
    let resources = Resources {
        kvm: kvm::open(kvm.ok_or_else(|| missing("hypervisor"))?)?,
        ram: Ram::map(
            memory.ok_or_else(|| missing("guest RAM"))?,
            plan.memory.bytes,
        )?,
        kernel: kernel.ok_or_else(|| missing("kernel"))?,
        initrd,
        disks,
        taps,
        console: queue.clone(),
        signals: Arc::new(Signals::new().map_err(ProcessError::Epoll)?),
    };
    Ok(Inputs {
        plan,
        resources,
        console: Console::new(queue, console),
        exit_on_reboot,
    })
}

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

/// The event loop and all it owns.
struct Process<'a> {
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
    /// The console's input is in the epoll set.
    input_watched: bool,
}

impl<'a> Process<'a> {
    fn new(
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

    fn run(&mut self) -> Result<Event, ProcessError> {
        self.watch_vcpus()?;
        self.watch_input();
        if self.plan.start_paused {
            self.paused = true;
            self.send(&Event::Paused)?;
        } else {
            self.start();
            self.send(&Event::Running)?;
        }
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
                    return Ok(last);
                }
            }
        }
    }

    /// Ends the machine, completing requests in flight, and writes out the console.
    fn end(&mut self) {
        if let Some(machine) = self.machine.take() {
            machine.stop();
        }
        self.console.drain();
    }

    fn start(&self) {
        if let Some(machine) = &self.machine {
            machine.start();
        }
    }

    fn send(&self, event: &Event) -> Result<(), ProcessError> {
        Ok(control::send(self.socket, event, &[])?)
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
        let (command, _) = control::receive::<Command>(self.socket)?;
        let Some(machine) = &mut self.machine else {
            return Ok(None);
        };
        match command {
            Command::Create { .. } => return Err(ProcessError::Protocol),
            Command::Pause => {
                if !self.paused {
                    machine.pause();
                    self.paused = true;
                }
                self.send(&Event::Paused)?;
            }
            Command::Resume => {
                if self.paused {
                    machine.resume();
                    self.paused = false;
                }
                self.send(&Event::Running)?;
            }
            Command::PowerButton => machine.press_power_button(),
            Command::Reset => return self.reset(),
            Command::Stop => return Ok(Some(Event::Stopped)),
            Command::Stats => {
                let stats = Stats {
                    vcpu_time_ns: machine.vcpus().cpu_times(),
                    vcpu_exits: machine.vcpus().exits(),
                    memory_resident: self.resources.ram.resident(),
                    devices: machine.device_stats(),
                };
                self.send(&Event::Stats(Box::new(stats)))?;
            }
            Command::SetLink { nic, up } => {
                if !machine.set_link(&nic, up) {
                    tracing::warn!(nic, "no network interface of this name");
                }
            }
        }
        Ok(None)
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
        if is_pending(Signal::CrashLoaded) {
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
            let event_fd = machine.vcpus().event_fd().as_raw_fd();
            // SAFETY: the eventfd belongs to the machine, which lives until after this statement.
            let _ = epoll::delete(&self.epoll, unsafe { BorrowedFd::borrow_raw(event_fd) });
            machine.stop();
        }
        self.resources.signals.take();
        self.resources.ram.clear()?;
        self.machine = Some(Machine::build(&self.plan, &mut self.resources, &self.hook)?);
        self.watch_vcpus()?;
        self.paused = false;
        self.start();
        tracing::info!("guest restarted in place");
        self.send(&Event::Reset)?;
        Ok(None)
    }

    fn watch_vcpus(&self) -> Result<(), ProcessError> {
        let Some(machine) = &self.machine else {
            return Ok(());
        };
        let event_fd = machine.vcpus().event_fd().as_raw_fd();
        // SAFETY: the eventfd belongs to the machine, which lives as long as this statement.
        self.watch(unsafe { BorrowedFd::borrow_raw(event_fd) }, Token::Vcpus)?;
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
