//! What the transport shares with worker threads: which vector is whose, and the failed flag.
//!
//! All atomics: workers raise interrupts and report failures while a vCPU thread may be waiting for
//! them with the function's lock held.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering};

use tracing::error;
use vmm_sys_util::eventfd::EventFd;

use crate::irq::Irq;
use crate::pci::msix::MsixVector;
use crate::state::RestoreError;
use crate::state::transport::{FunctionState, InterruptsState};

/// `VIRTIO_MSI_NO_VECTOR`.
pub(super) const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Failures logged per device; the guest can cause any number.
const LOGGED_FAILURES: u32 = 4;

/// Interrupt state of one function.
pub(super) struct Interrupts {
    name: String,
    vectors: Arc<[MsixVector]>,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    isr: AtomicU8,
    generation: AtomicU8,
    needs_reset: AtomicBool,
    failures: AtomicU32,
}

impl Interrupts {
    pub(super) fn new(name: &str, vectors: Arc<[MsixVector]>, queues: usize) -> Self {
        Self {
            name: name.to_owned(),
            vectors,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            failures: AtomicU32::new(0),
        }
    }

    /// Device reset: no vectors, nothing pending, not failed.
    pub(super) fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        self.queue_vectors
            .iter()
            .for_each(|vector| vector.store(NO_VECTOR, Ordering::SeqCst));
        self.isr.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    /// What a snapshot keeps.
    pub(super) fn save(&self) -> InterruptsState {
        let load = |vector: &AtomicU16| vector.load(Ordering::SeqCst);
        InterruptsState {
            config_vector: self.config_vector(),
            queue_vectors: self.queue_vectors.iter().map(load).collect(),
            isr: self.isr.load(Ordering::SeqCst),
            generation: self.generation(),
            needs_reset: self.needs_reset(),
        }
    }

    /// Takes over what was saved of a function with as many queues. Vectors that do not exist are
    /// none, as when a driver writes them.
    pub(super) fn restore(&self, saved: &InterruptsState) -> Result<(), RestoreError> {
        let (found, mine) = (saved.queue_vectors.len(), self.queue_vectors.len());
        if found != mine {
            let what = format!("vectors of {found} queues instead of {mine}");
            return Err(RestoreError::unfit::<FunctionState>(what));
        }
        self.set_config_vector(saved.config_vector);
        for (queue, &vector) in (0..).zip(&saved.queue_vectors) {
            self.set_queue_vector(queue, vector);
        }
        self.isr.store(saved.isr, Ordering::SeqCst);
        self.generation.store(saved.generation, Ordering::SeqCst);
        self.needs_reset.store(saved.needs_reset, Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::SeqCst)
    }

    /// The driver maps configuration changes to `vector`; one that does not exist reads back as
    /// `NO_VECTOR` (4.1.5.1.2.1).
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector
            .store(self.checked(vector), Ordering::SeqCst);
    }

    /// The vector of `queue`, `NO_VECTOR` for a queue that does not exist.
    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(queue));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    /// The driver maps `queue` to `vector`.
    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.checked(vector), Ordering::SeqCst);
        }
    }

    fn checked(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.vectors.len() {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// Reads the ISR status, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn bump_generation(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// The device cannot go on until the driver resets it; tells the driver.
    pub(super) fn fail(&self, cause: &dyn std::error::Error) {
        if self.failures.fetch_add(1, Ordering::Relaxed) < LOGGED_FAILURES {
            let source = cause.source().map(tracing::field::display);
            error!(device = self.name, error = %cause, source, "virtio device needs a reset");
        }
        self.needs_reset.store(true, Ordering::SeqCst);
        self.raise_config();
    }

    pub(super) fn raise_config(&self) {
        self.raise(&self.config_vector, ISR_CONFIG);
    }

    /// Without a vector there is no interrupt (INTx is not offered), but a polling driver sees the
    /// ISR status.
    fn raise(&self, vector: &AtomicU16, isr: u8) {
        match self
            .vectors
            .get(usize::from(vector.load(Ordering::Relaxed)))
        {
            Some(vector) => vector.raise(),
            None => drop(self.isr.fetch_or(isr, Ordering::SeqCst)),
        }
    }
}

/// The configuration-change interrupt as devices see it.
pub(super) struct ConfigIrq(pub(super) Arc<Interrupts>);

impl Irq for ConfigIrq {
    fn raise(&self) {
        self.0.bump_generation();
        self.0.raise_config();
    }
}

/// One queue's interrupt.
pub(super) struct QueueIrq {
    pub(super) interrupts: Arc<Interrupts>,
    /// Less than the number of queues.
    pub(super) queue: usize,
}

impl Irq for QueueIrq {
    fn raise(&self) {
        self.interrupts
            .raise(&self.interrupts.queue_vectors[self.queue], ISR_QUEUE);
    }

    fn event(&self) -> io::Result<Option<EventFd>> {
        let number = self.interrupts.queue_vectors[self.queue].load(Ordering::SeqCst);
        let vector = self.interrupts.vectors.get(usize::from(number));
        vector.map(MsixVector::lend).transpose()
    }
}
