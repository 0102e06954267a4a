//! A debugger on the machine: gdb by its remote protocol, on a thread of its own.
//!
//! vCPUs run unless somebody has them stand still, for which there are two reasons that know nothing of each
//! other: a pause (the target of all vCPUs), and the debugger (a set of vCPUs that it holds). So the machine
//! can be paused, dumped, reset and ended while a debugger holds it; time goes on for the guest as long as it is not paused.
//!
//! ```text
//!   vCPU threads ── stopped ──▶ Seat ── wake ──▶ debugger's thread ◀──▶ gdb
//!   a new machine ── sit ─────▶  │                   │
//!   event loop ── end ────────▶  │ ◀── kill ─────────┘
//! ```
//!
//! The machine stands still from its first instruction on until a debugger has come and lets it go on. After that it
//! does so at each reset as long as one is there.

mod connection;
mod guest;
mod memory;
mod session;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::wake::Wake;

use self::memory::Patch;
pub use self::session::Debugger;
use crate::vcpu::Debugged;

/// What of an address is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// An instruction there.
    Execution,
    /// Writes.
    Writes,
    /// Reads and writes.
    Accesses,
}

/// An address that the processor watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Guest virtual.
    pub address: u64,
    /// How many bytes, 1 for instructions.
    pub bytes: u64,
    /// What of it.
    pub watched: Watched,
}

/// What stopped a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// A breakpoint instruction.
    Breakpoint {
        /// Where it is.
        address: u64,
    },
    /// The processor's debugging hardware.
    Debug {
        /// A bit for each slot that it was.
        slots: u64,
        /// It has made its one step.
        step: bool,
    },
}

/// Why a vCPU stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A trap, the debugger's or the guest's own.
    Trap(Trap),
    /// A breakpoint of the debugger's that KVM could not have executed.
    Breakpoint,
    /// The guest cannot go on; that will be told when the debugger lets it.
    Crash,
}

/// A vCPU that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Its number.
    pub vcpu: u32,
    /// Why.
    pub reason: Reason,
}

/// What the debugger's thread hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// The run is over.
    Ended,
    /// The machine is another one, and stands at its first instruction.
    NewMachine,
    /// A vCPU stopped.
    Stop(Stop),
}

#[derive(Default)]
struct SeatState {
    /// The machine of now, and how many there were before it.
    machine: Option<Arc<Debugged>>,
    generation: u64,
    /// In the order in which they happened; at most one of each vCPU.
    stops: VecDeque<Stop>,
    /// Breakpoints in memory by guest virtual address.
    patches: BTreeMap<u64, Patch>,
    /// A machine is held from its first instruction on.
    holds: bool,
    /// There is a debugger.
    attached: bool,
    ended: bool,
}

/// Where a debugger sits, with or without one. It outlives resets.
pub struct Seat {
    state: Mutex<SeatState>,
    /// KVM stops vCPUs at data that is watched.
    watches_data: bool,
    wake: Wake,
    killed: Wake,
}

impl Seat {
    /// Holds the first machine; whether this host's KVM stops at data that is watched, the caller has found out.
    pub fn new(watches_data: bool) -> io::Result<Self> {
        let state = SeatState {
            holds: true,
            ..SeatState::default()
        };
        Ok(Self {
            state: Mutex::new(state),
            watches_data,
            wake: Wake::new()?,
            killed: Wake::new()?,
        })
    }

    fn state(&self) -> MutexGuard<'_, SeatState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new machine, whose vCPUs are parked.
    pub fn sit(&self, vcpus: Debugged) {
        let mut state = self.state();
        if state.holds {
            vcpus.keep();
        }
        state.machine = Some(Arc::new(vcpus));
        state.generation += 1;
        state.stops.clear();
        // What was in the other one's memory.
        state.patches.clear();
        drop(state);
        self.wake.wake();
    }

    /// The machine is no more.
    pub fn rise(&self) {
        self.state().machine = None;
    }

    /// A vCPU has stopped.
    pub fn stopped(&self, stop: Stop) {
        let mut state = self.state();
        if state.stops.iter().all(|other| other.vcpu != stop.vcpu) {
            state.stops.push_back(stop);
        }
        drop(state);
        self.wake.wake();
    }

    /// Whether a breakpoint of the debugger's is at this guest virtual address.
    pub fn is_breakpoint(&self, address: u64) -> bool {
        self.state().patches.contains_key(&address)
    }

    /// Holds off whoever would change guest memory for the debugger, as long as what this returns is kept; none if there
    /// are breakpoints in it.
    pub fn hold_memory(&self) -> Option<impl Sized + '_> {
        let state = self.state();
        state.patches.is_empty().then_some(state)
    }

    /// Whether guest memory has breakpoints in it.
    pub fn has_breakpoints(&self) -> bool {
        !self.state().patches.is_empty()
    }

    /// Whether there is a debugger.
    pub fn is_attached(&self) -> bool {
        self.state().attached
    }

    /// The run is over.
    fn end(&self) {
        self.state().ended = true;
        self.wake.wake();
    }

    /// Readable once the debugger has ended the machine.
    pub fn killed_fd(&self) -> BorrowedFd<'_> {
        self.killed.as_fd()
    }

    /// Whether it has, since this was asked last.
    pub fn take_killed(&self) -> bool {
        self.killed.clear()
    }

    fn machine(&self) -> Option<Arc<Debugged>> {
        self.state().machine.clone()
    }

    /// Whether the run is over, to a debugger that is not told of anything else now: that waits until the machine goes on.
    fn is_over(&self) -> bool {
        self.wake.clear();
        self.state().ended
    }

    /// What has happened, to a debugger that knows the machine of this number; which it is then.
    fn news(&self, known: &mut u64) -> Option<News> {
        self.wake.clear();
        let mut state = self.state();
        if state.ended {
            return Some(News::Ended);
        }
        if state.generation != *known {
            *known = state.generation;
            return Some(News::NewMachine);
        }
        state.stops.pop_front().map(News::Stop)
    }

    /// Forgets stops that come again by themselves when the vCPUs go on; whether there are others.
    fn has_stops_left(&self) -> bool {
        let mut state = self.state();
        (state.stops).retain(|stop| match stop.reason {
            Reason::Breakpoint | Reason::Trap(Trap::Breakpoint { .. }) => false,
            // A step is made again if it is wished; what is neither is the guest's own, to which it is due.
            Reason::Trap(Trap::Debug { slots, step }) => slots != 0 || !step,
            Reason::Crash => true,
        });
        let is_left = !state.stops.is_empty();
        drop(state);
        if is_left {
            self.wake.wake();
        }
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::debug::BREAKPOINT;

    #[test]
    fn stops_are_told_once_and_those_that_come_again_are_forgotten() {
        let seat = Seat::new(true).expect("a seat");
        let mut known = 0;
        assert_eq!(seat.news(&mut known), None);
        let debug = |slots, step| Reason::Trap(Trap::Debug { slots, step });
        let stop = |vcpu, reason| Stop { vcpu, reason };
        for stop in [
            stop(0, Reason::Breakpoint),
            stop(0, Reason::Crash),
            stop(1, Reason::Breakpoint),
            stop(2, debug(0, true)),
            stop(3, debug(2, false)),
            stop(4, debug(0, false)),
        ] {
            seat.stopped(stop);
        }
        let first = Some(News::Stop(stop(0, Reason::Breakpoint)));
        assert_eq!(seat.news(&mut known), first);
        assert!(!seat.is_over(), "who is idle takes none");
        assert!(seat.has_stops_left());
        let watched = Some(News::Stop(stop(3, debug(2, false))));
        assert_eq!(seat.news(&mut known), watched);
        assert!(seat.has_stops_left());
        let of_the_guest = Some(News::Stop(stop(4, debug(0, false))));
        assert_eq!(seat.news(&mut known), of_the_guest);
        assert!(!seat.has_stops_left());
        assert_eq!(seat.news(&mut known), None);
        seat.end();
        assert!(seat.is_over());
        assert_eq!(seat.news(&mut known), Some(News::Ended));
    }

    #[test]
    fn guest_memory_is_the_guests_own_while_it_is_saved() {
        let seat = Seat::new(true).expect("a seat");
        let held = seat.hold_memory().expect("no breakpoints");
        assert!(seat.state.try_lock().is_err(), "nobody puts one there");
        drop(held);
        let patch = Patch {
            physical: 0,
            original: BREAKPOINT,
        };
        seat.state().patches.insert(0, patch);
        assert!(seat.hold_memory().is_none());
    }
}
