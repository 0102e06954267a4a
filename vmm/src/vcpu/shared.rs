//! What all vCPU threads share: where they are to go, and what one of them has to say.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use devices::GuestMemory;
use devices::bus::Bus;
use devices::wake::Wake;

use crate::crash::CrashReport;
use crate::debug::{Reason, Seat, Stop};

/// What a vCPU tells the event loop.
#[derive(Debug)]
pub enum VcpuEvent {
    /// The guest cannot go on.
    Crashed(Box<CrashReport>),
    /// The host cannot go on.
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Target {
    Park = 0,
    Run = 1,
    End = 2,
}

/// What all vCPU threads share.
pub(super) struct Shared {
    pub(super) target: AtomicU8,
    /// The vCPUs that stand still whatever the target is, for a debugger; a bit for each.
    pub(super) held: AtomicU64,
    /// The debugger's, if there may be one.
    pub(super) seat: Option<Arc<Seat>>,
    pub(super) parked: Mutex<usize>,
    pub(super) changed: Condvar,
    pub(super) event: Mutex<Option<VcpuEvent>>,
    pub(super) wake: Wake,
    pub(super) ports: Bus,
    pub(super) mmio: Bus,
    pub(super) memory: Arc<GuestMemory>,
}

impl Shared {
    pub(super) fn target(&self) -> Target {
        match self.target.load(Ordering::Acquire) {
            1 => Target::Run,
            2 => Target::End,
            _ => Target::Park,
        }
    }

    /// Whether a vCPU is to run now.
    pub(super) fn may_run(&self, vcpu: u32) -> bool {
        let is_held = self.held.load(Ordering::Acquire) >> vcpu & 1 != 0;
        self.target() == Target::Run && !is_held
    }

    /// Has all vCPUs stand still for the debugger, who is told.
    pub(super) fn stop(&self, seat: &Seat, vcpu: u32, reason: Reason) {
        self.held.store(!0, Ordering::SeqCst);
        seat.stopped(Stop { vcpu, reason });
    }

    pub(super) fn parked(&self) -> MutexGuard<'_, usize> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stands still until the vCPU may run, or has to end.
    pub(super) fn park(&self, vcpu: u32) -> Target {
        let mut parked = self.parked();
        *parked += 1;
        self.changed.notify_all();
        while self.target() != Target::End && !self.may_run(vcpu) {
            parked = self
                .changed
                .wait(parked)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *parked -= 1;
        self.target()
    }

    /// Reports the first event; a dying guest may have more, which add nothing.
    pub(super) fn report(&self, event: VcpuEvent) {
        let mut slot = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(event);
        self.wake.wake();
    }
}
