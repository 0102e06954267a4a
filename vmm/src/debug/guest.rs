//! The machine as gdb's protocol wants it: a thread for each vCPU.

mod breakpoints;
mod monitor;
mod registers;
mod resume;

use std::num::NonZeroUsize;
use std::sync::{Arc, MutexGuard, PoisonError};

use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::breakpoints::{BreakpointsOps, WatchKind};
use gdbstub::target::ext::monitor_cmd::MonitorCmdOps;
use gdbstub::target::{Target, TargetError, TargetResult};
use kvm_ioctls::VcpuFd;
use thiserror::Error;

use self::resume::Wish;
use super::{News, Reason, Seat, Slot, Stop, Trap, Watched};
use crate::arch::debug::{Control, Processor, SLOTS, control};
use crate::kvm::api::KvmError;
use crate::vcpu::Debugged;

/// What ends a debugger's connection.
#[derive(Debug, Error)]
pub(super) enum Fault {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// The machine, while a debugger is there.
pub(super) struct Guest {
    seat: Arc<Seat>,
    /// The machine's number that the debugger knows of.
    known: u64,
    slots: [Option<Slot>; SLOTS],
    /// What is to become of each vCPU when they go on.
    wish: Wish,
    /// Addresses are physical ones.
    physical: bool,
}

/// gdb's number of a vCPU.
pub(super) fn thread(vcpu: u32) -> Tid {
    NonZeroUsize::MIN.saturating_add(vcpu as usize)
}

fn vcpu(thread: Tid) -> usize {
    thread.get() - 1
}

impl Guest {
    /// Holds the machine of now and those that come.
    pub(super) fn attach(seat: Arc<Seat>) -> Self {
        let mut state = seat.state();
        state.attached = true;
        state.holds = true;
        state.stops.clear();
        let known = state.generation;
        drop(state);
        let guest = Self {
            seat,
            known,
            slots: [None; SLOTS],
            wish: Wish::default(),
            physical: false,
        };
        guest.hold();
        guest
    }

    /// Takes all breakpoints back and lets the machine go on.
    pub(super) fn detach(mut self) {
        self.hold();
        let mut state = self.seat.state();
        state.attached = false;
        state.holds = false;
        state.stops.clear();
        let patches = std::mem::take(&mut state.patches);
        let machine = state.machine.clone();
        if let Some(machine) = &machine {
            let patches = patches.into_values();
            patches.for_each(|patch| patch.undo(machine.memory()));
        }
        // Not before memory is what the guest has written there.
        drop(state);
        self.slots = [None; SLOTS];
        let Some(machine) = machine else { return };
        for vcpu in machine.vcpus() {
            if let Err(error) = control(&vcpu, &Control::default()) {
                tracing::warn!(%error, "a vCPU may stop for a debugger that has left");
            }
        }
        machine.let_go(0);
    }

    pub(super) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Returns when no vCPU runs.
    pub(super) fn hold(&self) {
        if let Some(machine) = self.seat.machine() {
            machine.hold();
        }
    }

    pub(super) fn news(&mut self) -> Option<News> {
        self.seat.news(&mut self.known)
    }

    /// What the debugger is told of it; nothing of what was the guest's own.
    pub(super) fn told(&mut self, news: News) -> Option<MultiThreadStopReason<u64>> {
        let signal = |vcpu, signal| {
            let tid = thread(vcpu);
            Some(MultiThreadStopReason::SignalWithThread { tid, signal })
        };
        self.hold();
        match news {
            News::Ended => Some(MultiThreadStopReason::Exited(0)),
            News::NewMachine => signal(0, Signal::SIGTRAP),
            News::Stop(Stop { vcpu, reason }) => match reason {
                Reason::Crash => signal(vcpu, Signal::SIGABRT),
                Reason::Breakpoint => Some(MultiThreadStopReason::SwBreak(thread(vcpu))),
                Reason::Trap(trap) => self.trapped(vcpu, trap),
            },
        }
    }

    fn trapped(&mut self, vcpu: u32, trap: Trap) -> Option<MultiThreadStopReason<u64>> {
        let tid = thread(vcpu);
        let signal = Signal::SIGTRAP;
        match trap {
            Trap::Breakpoint { address } if self.seat.is_breakpoint(address) => {
                return Some(MultiThreadStopReason::SwBreak(tid));
            }
            Trap::Debug { slots, step } => {
                if let Some(slot) = self.hit(slots) {
                    return Some(slot_reason(slot, tid));
                }
                if step && self.wish.steps(vcpu as usize) {
                    return Some(MultiThreadStopReason::SignalWithThread { tid, signal });
                }
            }
            Trap::Breakpoint { .. } => {}
        }
        // The guest's own.
        match self.go_on(Some((vcpu as usize, trap))) {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(%error, "the guest does not get its trap");
                Some(MultiThreadStopReason::SignalWithThread { tid, signal })
            }
        }
    }

    fn hit(&self, slots: u64) -> Option<Slot> {
        let mut all = self.slots.iter().enumerate();
        all.find_map(|(number, slot)| slot.filter(|_| slots >> number & 1 != 0))
    }

    fn machine(&self) -> TargetResult<Arc<Debugged>, Self> {
        self.seat.machine().ok_or(TargetError::NonFatal)
    }
}

fn slot_reason(slot: Slot, tid: Tid) -> MultiThreadStopReason<u64> {
    let addr = slot.address;
    match slot.watched {
        Watched::Execution => MultiThreadStopReason::HwBreak(tid),
        Watched::Writes => MultiThreadStopReason::Watch {
            tid,
            kind: WatchKind::Write,
            addr,
        },
        Watched::Accesses => MultiThreadStopReason::Watch {
            tid,
            kind: WatchKind::ReadWrite,
            addr,
        },
    }
}

/// The vCPU of a thread, if it is there.
fn vcpu_of(machine: &Debugged, thread: Tid) -> TargetResult<MutexGuard<'_, VcpuFd>, Guest> {
    let fd = machine.vcpu(vcpu(thread)).ok_or(TargetError::NonFatal)?;
    Ok(fd.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Target for Guest {
    type Arch = Processor;
    type Error = Fault;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}
