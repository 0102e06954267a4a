//! The thread that serves a handler's queues, with the only epoll loop of the devices.
//!
//! ```text
//!            spawn (hook ok)          pause                 resume
//!  (none) ------------------> Running -----> drain, Parked ------> Running
//!                                | QueueError: drain, report failure
//!                                v
//!                              Failed        stop from any state: drain, thread ends, joined
//! ```
//!
//! Descriptors are polled edge-triggered. A write to an eventfd wakes an edge-triggered poller even
//! if the counter was not zero, so kick eventfds are never read: one system call less per wake-up.
//! Events that arrive while the worker is parked stay in the epoll instance.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::thread::{ThreadHook, ThreadRole, ThreadSetupError};
use crate::virtio::queue::{QueueState, VirtQueue};
use crate::virtio::{QueueError, QueueHandler};
use crate::wake::Wake;

/// Stack of a worker thread, bytes. Handlers keep their buffers on the heap.
const STACK_SIZE: usize = 128 * 1024;

/// Linux cuts longer thread names (`TASK_COMM_LEN` less the terminator).
const MAX_THREAD_NAME: usize = 15;

/// Events taken per `epoll_wait`.
const EVENTS: usize = 16;

/// Tokens: queue positions from 0, handler tokens from `FD_TOKENS`, the worker's own last.
const FD_TOKENS: u64 = 1 << 32;
const CONTROL_TOKEN: u64 = u64::MAX;

/// Told about the error that ended a handler's work. Called on the worker thread; it must not wait
/// for anyone who may be waiting for the worker.
pub type FailureCallback = Box<dyn Fn(QueueError) + Send>;

/// A worker thread could not be started.
#[derive(Debug, Error)]
pub enum SpawnWorkerError {
    /// No control eventfd.
    #[error("Cannot create the control eventfd of worker {name}")]
    Control {
        /// Thread name.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No thread.
    #[error("Cannot start worker thread {name}")]
    Thread {
        /// Thread name.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to poll one of the handler's descriptors.
    #[error("Cannot poll the descriptors of worker {name}")]
    Poll {
        /// Thread name.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The thread hook failed.
    #[error("Cannot set up worker thread {name}")]
    Setup {
        /// Thread name.
        name: String,
        /// The cause.
        #[source]
        source: ThreadSetupError,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WorkerCommand {
    Run,
    Pause,
    Stop,
}

/// What the thread reports.
enum Phase {
    Starting,
    Refused(StartError),
    Running,
    Parked,
    /// The handler failed or the thread is gone; nothing is in flight.
    Idle,
}

enum StartError {
    Poll(io::Error),
    Setup(ThreadSetupError),
}

struct WorkerState {
    command: WorkerCommand,
    phase: Phase,
    /// The handler's queues when it parked last; room for them was made at the start, since the
    /// thread may not be allowed to.
    queues: Vec<(u16, QueueState)>,
}

struct Control {
    state: Mutex<WorkerState>,
    changed: Condvar,
    wake: Wake,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, WorkerState> {
        // The state is a pair of enums: never half written, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_phase(&self, phase: Phase) {
        self.lock().phase = phase;
        self.changed.notify_all();
    }

    fn park(&self, queues: &[VirtQueue]) {
        let mut state = self.lock();
        state.queues.clear();
        let states = queues.iter().map(|queue| (queue.index(), queue.state()));
        state.queues.extend(states);
        state.phase = Phase::Parked;
        drop(state);
        self.changed.notify_all();
    }

    fn wait_while(&self, condition: impl Fn(&WorkerState) -> bool) -> MutexGuard<'_, WorkerState> {
        self.changed
            .wait_while(self.lock(), |state| condition(state))
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self, command: WorkerCommand) {
        self.lock().command = command;
        self.changed.notify_all();
        self.wake.wake();
    }
}

/// Marks the worker idle even if the handler panics, so that nobody waits for it for ever.
struct IdleOnExit(Arc<Control>);

impl Drop for IdleOnExit {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if !matches!(state.phase, Phase::Refused(_)) {
            state.phase = Phase::Idle;
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

/// A running handler. Dropping it stops the thread.
pub struct Worker {
    control: Arc<Control>,
    thread: Option<JoinHandle<Box<dyn QueueHandler>>>,
}

impl Worker {
    /// Starts `handler` on a thread called `name` (cut to what Linux shows). Returns once `hook`
    /// has accepted the thread for its `role` and the descriptors are polled; `failed` hears of the error that
    /// ends the work.
    pub fn spawn(
        name: &str,
        role: ThreadRole,
        handler: Box<dyn QueueHandler>,
        hook: ThreadHook,
        failed: FailureCallback,
    ) -> Result<Self, SpawnWorkerError> {
        let name = thread_name(name);
        let wake = Wake::new().map_err(|source| SpawnWorkerError::Control {
            name: name.clone(),
            source,
        })?;
        let state = Mutex::new(WorkerState {
            command: WorkerCommand::Run,
            phase: Phase::Starting,
            queues: Vec::with_capacity(handler.queues().len()),
        });
        let control = Arc::new(Control {
            state,
            changed: Condvar::new(),
            wake,
        });
        let shared = Arc::clone(&control);
        let thread = Builder::new()
            .name(name.clone())
            .stack_size(STACK_SIZE)
            .spawn(move || {
                let restrict = || hook(role);
                run(handler, shared, &restrict, &failed)
            })
            .map_err(|source| SpawnWorkerError::Thread {
                name: name.clone(),
                source,
            })?;
        let worker = Self {
            control,
            thread: Some(thread),
        };
        worker.wait_started(name)?;
        Ok(worker)
    }

    fn wait_started(&self, name: String) -> Result<(), SpawnWorkerError> {
        let mut state = self
            .control
            .wait_while(|state| matches!(state.phase, Phase::Starting));
        match &state.phase {
            Phase::Refused(_) => {}
            _ => return Ok(()),
        }
        match std::mem::replace(&mut state.phase, Phase::Idle) {
            Phase::Refused(StartError::Poll(source)) => {
                Err(SpawnWorkerError::Poll { name, source })
            }
            Phase::Refused(StartError::Setup(source)) => {
                Err(SpawnWorkerError::Setup { name, source })
            }
            _ => Ok(()),
        }
    }

    /// Returns once no request is in flight and the handler does nothing until [`Worker::resume`].
    pub fn pause(&self) {
        self.control.command(WorkerCommand::Pause);
        let done = |state: &WorkerState| matches!(state.phase, Phase::Parked | Phase::Idle);
        drop(self.control.wait_while(|state| !done(state)));
    }

    /// Lets a paused worker go on.
    pub fn resume(&self) {
        self.control.command(WorkerCommand::Run);
    }

    /// Numbers and states of the handler's queues at the last [`Worker::pause`].
    pub fn queues(&self) -> Vec<(u16, QueueState)> {
        self.control.lock().queues.clone()
    }

    /// Ends the thread after the requests in flight and gives the handler back, unless it panicked.
    pub fn stop(mut self) -> Option<Box<dyn QueueHandler>> {
        self.join()
    }

    fn join(&mut self) -> Option<Box<dyn QueueHandler>> {
        let thread = self.thread.take()?;
        self.control.command(WorkerCommand::Stop);
        // An error is a panic in the handler, whose message the panic hook has printed.
        thread.join().ok()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.join());
    }
}

/// Cuts `name` to what Linux shows, at a character boundary and without inner NULs.
fn thread_name(name: &str) -> String {
    let mut cut = String::with_capacity(MAX_THREAD_NAME);
    for c in name.chars().filter(|&c| c != '\0') {
        if cut.len() + c.len_utf8() > MAX_THREAD_NAME {
            break;
        }
        cut.push(c);
    }
    cut
}

fn run(
    mut handler: Box<dyn QueueHandler>,
    control: Arc<Control>,
    restrict: &dyn Fn() -> Result<(), ThreadSetupError>,
    failed: &FailureCallback,
) -> Box<dyn QueueHandler> {
    let _idle_on_exit = IdleOnExit(Arc::clone(&control));
    let epoll = match poll_descriptors(&*handler, &control) {
        Ok(epoll) => epoll,
        Err(error) => {
            control.set_phase(Phase::Refused(StartError::Poll(error)));
            return handler;
        }
    };
    if let Err(error) = restrict() {
        control.set_phase(Phase::Refused(StartError::Setup(error)));
        return handler;
    }
    control.set_phase(Phase::Running);
    let mut result = Ok(());
    while result.is_ok() && obey(&mut *handler, &control) {
        result = kick_all(&mut *handler).and_then(|()| serve(&mut *handler, &epoll, &control));
    }
    handler.drain();
    if let Err(error) = result {
        failed(error);
        control.set_phase(Phase::Idle);
        drop(control.wait_while(|state| state.command != WorkerCommand::Stop));
    }
    handler
}

/// Parks as long as the command says so; false if the worker is to end.
fn obey(handler: &mut dyn QueueHandler, control: &Control) -> bool {
    // Drained before the command is read: a command given later wakes the poller again.
    control.wake.clear();
    let mut state = control.lock();
    if state.command == WorkerCommand::Pause {
        drop(state);
        handler.drain();
        control.park(handler.queues());
        state = control.wait_while(|state| state.command == WorkerCommand::Pause);
        state.phase = Phase::Running;
    }
    state.command != WorkerCommand::Stop
}

fn kick_all(handler: &mut dyn QueueHandler) -> Result<(), QueueError> {
    (0..handler.queues().len()).try_for_each(|position| handler.kicked(position))
}

/// Serves events until there is a command.
fn serve(
    handler: &mut dyn QueueHandler,
    epoll: &Epoll,
    control: &Control,
) -> Result<(), QueueError> {
    let mut events = [EpollEvent::default(); EVENTS];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(QueueError::Backend(error)),
        };
        let mut commanded = false;
        for event in &events[..count] {
            match event.data() {
                CONTROL_TOKEN => commanded = true,
                token if token >= FD_TOKENS => handler.readable((token - FD_TOKENS) as u16)?,
                position => handler.kicked(position as usize)?,
            }
        }
        if commanded && control.lock().command != WorkerCommand::Run {
            return Ok(());
        }
    }
}

fn poll_descriptors(handler: &dyn QueueHandler, control: &Control) -> io::Result<Epoll> {
    let epoll = Epoll::new()?;
    add(
        &epoll,
        control.wake.as_fd().as_raw_fd(),
        CONTROL_TOKEN,
        EventSet::IN,
    )?;
    for (position, queue) in handler.queues().iter().enumerate() {
        add(
            &epoll,
            queue.kick().as_raw_fd(),
            position as u64,
            EventSet::IN,
        )?;
    }
    for watch in handler.fds() {
        let events = if watch.writable {
            EventSet::IN | EventSet::OUT
        } else {
            EventSet::IN
        };
        add(
            &epoll,
            watch.fd.as_raw_fd(),
            FD_TOKENS + u64::from(watch.token),
            events,
        )?;
    }
    Ok(epoll)
}

fn add(epoll: &Epoll, fd: RawFd, token: u64, events: EventSet) -> io::Result<()> {
    let events = events | EventSet::EDGE_TRIGGERED;
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
}
