//! The vCPUs as a debugger has them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::GuestMemory;
use kvm_ioctls::VcpuFd;

use super::Remote;
use super::shared::{Shared, Target};

/// All vCPUs of a machine, whether there still is that machine or not.
pub struct Debugged {
    shared: Arc<Shared>,
    vcpus: Vec<Remote>,
}

impl Debugged {
    pub(super) fn new(shared: Arc<Shared>, vcpus: Vec<Remote>) -> Self {
        Self { shared, vcpus }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.vcpus.len()
    }

    /// Guest RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.shared.memory
    }

    /// Has vCPUs stay that are parked.
    pub fn keep(&self) {
        self.shared.held.store(!0, Ordering::Release);
    }

    /// Returns when none runs, or the machine is no more.
    pub fn hold(&self) {
        let mut parked = self.shared.parked();
        self.keep();
        self.vcpus.iter().for_each(Remote::kick);
        while *parked < self.vcpus.len() && self.shared.target() != Target::End {
            let changed = self.shared.changed.wait(parked);
            parked = changed.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets those go on whose bit in `held` is not set, if nobody else has them stand still.
    pub fn let_go(&self, held: u64) {
        // Under the lock, so that a thread between its check and its wait is not missed.
        let _parked = self.shared.parked();
        self.shared.held.store(held, Ordering::Release);
        self.shared.changed.notify_all();
    }

    /// A vCPU, which is to be locked while it is held: else it would have to be waited for.
    pub fn vcpu(&self, number: usize) -> Option<&Mutex<VcpuFd>> {
        self.vcpus.get(number).map(|remote| &*remote.fd)
    }

    /// All of them, likewise.
    pub fn vcpus(&self) -> impl Iterator<Item = MutexGuard<'_, VcpuFd>> {
        let fds = self.vcpus.iter().map(|remote| remote.fd.lock());
        fds.map(|fd| fd.unwrap_or_else(PoisonError::into_inner))
    }
}
