//! What all vCPU threads share: where they are to go, and what one of them has to say.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use devices::GuestMemory;
use devices::bus::Bus;
use devices::wake::Wake;

use crate::crash::CrashReport;

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

    pub(super) fn parked(&self) -> MutexGuard<'_, usize> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stands still until the target is not [`Target::Park`].
    pub(super) fn park(&self) -> Target {
        let mut parked = self.parked();
        *parked += 1;
        self.changed.notify_all();
        while self.target() == Target::Park {
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
