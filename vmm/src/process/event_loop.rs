//! The one thread that owns the VM's state. Sources push what happened, the loop steps the machine's
//! [`Life`] by it and does what follows; it alone adds and removes sources, and waits for nothing else.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Instant;

use devices::thread::ThreadHook;
use event_manager::{EventManager, MutEventSubscriber, SubscriberId, SubscriberOps};

use super::ProcessError;
use super::deadlines::Deadlines;
use super::hardware::{Completion, Handles, Hardware};
use super::inputs::Inputs;
use super::life::{Effect, Input, Life};
use super::operator::Operator;
use super::sources::{
    ConsoleSource, ControlSource, DebuggerSource, GuestSource, HostErrorSource, Inbox, News,
    OperatorSource, PowerSource, VcpuSource,
};
use crate::control::{self, Event, MachineState, Report};
use crate::debug::Debugger;
use crate::footprint::Settling;
use crate::plan::BootPlan;
use crate::trace;

/// A source, whatever it is.
type Source<'a> = Box<dyn MutEventSubscriber + 'a>;

/// Events that are taken from the kernel at once; there are not many more descriptors.
const EVENTS: usize = 16;

/// The event loop and all it owns.
pub(super) struct Process<'a> {
    socket: BorrowedFd<'a>,
    manager: EventManager<Source<'a>>,
    inbox: Inbox,
    life: Life,
    operator: Operator,
    handles: Handles,
    console: Rc<RefCell<ConsoleSource>>,
    /// Sources that are one machine's, which a reset replaces.
    of_machine: [SubscriberId; 2],
    deadlines: Deadlines,
    settling: Settling,
    /// It lets go of no page: whatever its guest waits for is to be there.
    is_realtime: bool,
    debugger: Option<Debugger>,
    /// Tell the launcher the steps of the start.
    send_boot_trace: bool,
    ended: bool,
}

impl<'a> Process<'a> {
    /// Builds the machine and the loop around it.
    pub(super) fn new(
        socket: BorrowedFd<'a>,
        inputs: Inputs,
        hook: ThreadHook,
    ) -> Result<Self, ProcessError> {
        let boots_from_disk = inputs.plan.boot == BootPlan::Disk;
        let life = Life::new(
            inputs.plan.start_paused,
            inputs.exit_on_reboot,
            boots_from_disk,
        );
        let vsock_cid = inputs.plan.vsock_cid();
        let is_realtime = inputs.plan.placement.realtime != 0;
        let life = life.telling(inputs.resources.fallbacks.clone(), vsock_cid);
        let signals = inputs.resources.signals.clone();
        let errors = inputs.resources.host_errors.clone();
        let seat = inputs.resources.seat.clone();
        let saved = inputs.saved.as_ref();
        let (hardware, handles) =
            Hardware::build(inputs.plan, inputs.resources, saved, hook.clone())?;
        let operator = Operator::new(hardware).map_err(ProcessError::Epoll)?;
        let inbox = Inbox::default();
        let console = ConsoleSource::new(inputs.console, handles.serial.clone(), inbox.clone());
        let console = Rc::new(RefCell::new(console));
        let mut manager: EventManager<Source<'a>> =
            EventManager::new_with_capacity(EVENTS).map_err(ProcessError::Watch)?;
        let control = inbox.clone();
        manager.add_subscriber(Box::new(ControlSource {
            socket,
            inbox: control,
        }));
        let guest = inbox.clone();
        manager.add_subscriber(Box::new(GuestSource {
            signals,
            inbox: guest,
        }));
        manager.add_subscriber(Box::new(HostErrorSource {
            errors,
            inbox: inbox.clone(),
        }));
        manager.add_subscriber(Box::new(OperatorSource {
            completions: operator.completions(),
            inbox: inbox.clone(),
        }));
        manager.add_subscriber(Box::new(console.clone()));
        let mut debugger = None;
        if let (Some(seat), Some(listener)) = (seat, inputs.debugger) {
            let started = Debugger::start(seat.clone(), listener, hook);
            debugger = Some(started.map_err(ProcessError::Debugger)?);
            let inbox = inbox.clone();
            manager.add_subscriber(Box::new(DebuggerSource { seat, inbox }));
        }
        let of_machine = sources_of(&handles, &life, &inbox);
        let of_machine = of_machine.map(|source| manager.add_subscriber(source));
        Ok(Self {
            socket,
            manager,
            inbox,
            life,
            operator,
            handles,
            console,
            of_machine,
            deadlines: Deadlines::default(),
            settling: Settling::default(),
            is_realtime,
            debugger,
            send_boot_trace: inputs.boot_trace,
            ended: false,
        })
    }

    /// Runs the machine to its end, of which the launcher is told; whether the guest ended or was stopped.
    pub(super) fn run(mut self) -> Result<(), ProcessError> {
        self.inbox.input(Input::Started);
        self.take_in()?;
        trace::mark("running");
        self.tell_boot_trace()?;
        self.settle_later();
        while !self.ended {
            let watchdog = self.handles.watchdog.as_ref();
            let watchdog = watchdog.and_then(|watchdog| watchdog.next());
            let others = watchdog.into_iter().chain(self.settling.due());
            let timeout = self.deadlines.timeout(others.min());
            let woken = self.manager.run_with_timeout(timeout);
            woken.map_err(ProcessError::Watch)?;
            if let Some(watchdog) = &self.handles.watchdog
                && let Some(action) = watchdog.take_due(Instant::now())
            {
                self.inbox.input(Input::WatchdogExpired(action));
            }
            if self.deadlines.take_again() {
                self.inbox.input(Input::Again);
            }
            for call in self.deadlines.take_past() {
                self.inbox.input(Input::Late { call });
            }
            self.take_in()?;
            self.settling.settle(Instant::now());
        }
        if let Some(debugger) = &self.debugger {
            debugger.end();
        }
        self.console.borrow_mut().drain();
        if let Some(debugger) = self.debugger {
            debugger.join();
        }
        Ok(())
    }

    /// Steps by everything that happened, in order.
    fn take_in(&mut self) -> Result<(), ProcessError> {
        while let Some(news) = self.inbox.pop() {
            match news {
                News::Input(input) => self.step(input)?,
                News::Completion(Completion { result, handles }) => {
                    self.step(Input::Done(result))?;
                    if let Some(handles) = handles {
                        self.replace(handles);
                    }
                }
                News::CameFurther => self.tell_boot_trace()?,
                News::Broken(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn step(&mut self, input: Input) -> Result<(), ProcessError> {
        let life = std::mem::take(&mut self.life);
        let (life, effects) = life.step(input);
        self.life = life;
        effects
            .into_iter()
            .try_for_each(|effect| self.apply(effect))
    }

    fn apply(&mut self, effect: Effect) -> Result<(), ProcessError> {
        match effect {
            Effect::Run => self.operator.run(),
            Effect::Begin(job) => self.operator.begin(job),
            Effect::PressPowerButton => self.handles.power.press_power_button(),
            Effect::TryAgain(refusal) => {
                tracing::warn!(
                    "a disk's standstill or a device's removal is tried again: {refusal}"
                );
                self.deadlines.try_again();
            }
            Effect::Expect { call, seconds } => self.deadlines.add(call, seconds),
            Effect::Tell(report) => {
                if is_last(&report) {
                    self.tell_boot_trace()?;
                }
                control::send(self.socket, &report, &[])?;
            }
            Effect::End => self.ended = true,
        }
        Ok(())
    }

    /// The sources of a new machine instead of the old one's.
    fn settle_later(&mut self) {
        if !self.is_realtime {
            self.settling.begin(Instant::now());
        }
    }

    fn replace(&mut self, handles: Handles) {
        self.handles = handles;
        self.settle_later();
        let serial = self.handles.serial.clone();
        self.console.borrow_mut().set_serial(serial);
        for source in self.of_machine {
            // It was there, so it can be removed.
            drop(self.manager.remove_subscriber(source));
        }
        let sources = sources_of(&self.handles, &self.life, &self.inbox);
        self.of_machine = sources.map(|source| self.manager.add_subscriber(source));
    }

    fn tell_boot_trace(&self) -> Result<(), ProcessError> {
        if self.send_boot_trace {
            let trace = Event::BootTrace {
                marks: trace::marks(),
                guest: trace::guest_marks(),
            };
            let report = trace.with(self.life.state());
            control::send(self.socket, &report, &[])?;
        }
        Ok(())
    }
}

fn sources_of<'a>(handles: &Handles, life: &Life, inbox: &Inbox) -> [Source<'a>; 2] {
    let vcpus = VcpuSource {
        vcpus: handles.vcpus.clone(),
        machine: life.machine(),
        inbox: inbox.clone(),
    };
    let power = PowerSource {
        line: handles.power_line.clone(),
        power: handles.power.clone(),
        inbox: inbox.clone(),
    };
    [Box::new(vcpus), Box::new(power)]
}

/// It says how the run ended.
fn is_last(report: &Report) -> bool {
    matches!(report, Report::Notice(notice) if notice.state == MachineState::ShuttingDown)
}
