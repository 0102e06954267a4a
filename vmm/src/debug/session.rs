//! The debugger's thread: waits for a client, serves it to its end, and lets the machine go on.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use devices::thread::{ThreadHook, ThreadRole};
use gdbstub::common::Signal;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError, MultiThreadStopReason};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SocketFlags, accept_with};

use super::Seat;
use super::connection::Link;
use super::guest::{Fault, Guest, thread};

/// Stack of the thread, bytes.
const STACK_SIZE: usize = 256 * 1024;

/// The thread, and the seat that it serves.
pub struct Debugger {
    seat: Arc<Seat>,
    thread: JoinHandle<()>,
}

impl Debugger {
    /// Serves clients of `listener`, one at a time.
    pub fn start(seat: Arc<Seat>, listener: OwnedFd, hook: ThreadHook) -> io::Result<Self> {
        let served = seat.clone();
        let thread = Builder::new()
            .name("debugger".into())
            .stack_size(STACK_SIZE)
            .spawn(move || match hook(ThreadRole::Debugger) {
                Ok(()) => serve(&served, &listener),
                Err(error) => tracing::error!(%error, "there is no debugger"),
            })?;
        Ok(Self { seat, thread })
    }

    /// Has the client told that the run is over.
    pub fn end(&self) {
        self.seat.end();
    }

    /// Waits until it has been.
    pub fn join(self) {
        // A thread that panicked has nothing to tell.
        drop(self.thread.join());
    }
}

/// Until the run is over.
fn serve(seat: &Arc<Seat>, listener: &OwnedFd) {
    loop {
        match accept(seat, listener) {
            Ok(Some(stream)) => attend(seat, stream),
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "no debugger can come any more");
                return;
            }
        }
    }
}

/// The next client; none when the run is over.
fn accept(seat: &Seat, listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    loop {
        if seat.is_over() {
            return Ok(None);
        }
        wait(listener, seat)?;
        match accept_with(listener, flags) {
            Ok(stream) => return Ok(Some(stream)),
            Err(errno) if is_passing(errno) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn is_passing(errno: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(errno, Errno::AGAIN | Errno::INTR | Errno::CONNABORTED)
}

/// Until there is something of the client's or of the machine's.
fn wait(client: &impl AsFd, seat: &Seat) -> io::Result<()> {
    let mut fds = [
        PollFd::new(client, PollFlags::IN),
        PollFd::new(&seat.wake, PollFlags::IN),
    ];
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// From the connection to its end, after which the machine goes on, or ends.
fn attend(seat: &Arc<Seat>, stream: OwnedFd) {
    let mut guest = Guest::attach(seat.clone());
    tracing::info!("a debugger holds the machine");
    match converse(&mut guest, Link::new(stream)) {
        Ok(DisconnectReason::Kill) => {
            tracing::info!("the debugger ends the machine");
            seat.killed.wake();
            return;
        }
        Ok(_) => tracing::info!("the debugger has left"),
        Err(error) => tracing::info!("the debugger is gone: {error}"),
    }
    guest.detach();
}

type Machine<'a> = GdbStubStateMachine<'a, Guest, Link>;
type StubError = GdbStubError<Fault, io::Error>;

/// What ends a conversation before its time.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Stub(#[from] StubError),
    #[error(transparent)]
    Link(#[from] io::Error),
}

fn converse(guest: &mut Guest, link: Link) -> Result<DisconnectReason, Broken> {
    let stub = GdbStub::new(link);
    let mut machine = stub.run_state_machine(guest)?;
    loop {
        machine = match machine {
            Machine::Idle(mut idle) => match idle.borrow_conn().next()? {
                Some(byte) => idle.incoming_data(guest, byte)?,
                None => {
                    wait(idle.borrow_conn(), guest.seat())?;
                    if guest.seat().is_over() {
                        return Ok(DisconnectReason::Disconnect);
                    }
                    Machine::Idle(idle)
                }
            },
            Machine::Running(mut running) => {
                if let Some(reason) = guest.news().and_then(|news| guest.told(news)) {
                    running.report_stop(guest, reason)?
                } else if let Some(byte) = running.borrow_conn().next()? {
                    running.incoming_data(guest, byte)?
                } else {
                    wait(running.borrow_conn(), guest.seat())?;
                    Machine::Running(running)
                }
            }
            Machine::CtrlCInterrupt(interrupted) => {
                guest.hold();
                let reason = MultiThreadStopReason::SignalWithThread {
                    tid: thread(0),
                    signal: Signal::SIGINT,
                };
                interrupted.interrupt_handled(guest, Some(reason))?
            }
            Machine::Disconnected(ended) => return Ok(ended.get_reason()),
        };
    }
}
