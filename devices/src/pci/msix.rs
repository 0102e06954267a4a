//! MSI-X: the table, the pending bits, and vectors that workers raise without a lock
//! (PCI 3.0, 6.8.2).

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tracing::warn;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::irq::{MsiMessage, MsiRouter};
use crate::state::RestoreError;
use crate::state::transport::{FunctionState, MsixState};

/// Size of an entry of the table, bytes.
pub(crate) const ENTRY: usize = 16;
/// Vector control, bit 0: masked.
const MASKED: u8 = 1;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;

/// One vector. Raised from worker threads, masked from vCPU threads.
#[derive(Debug)]
pub(crate) struct MsixVector {
    masked: AtomicBool,
    pending: AtomicBool,
    /// Made when the guest first unmasks the vector, or the kernel is to raise it.
    event: OnceLock<EventFd>,
    /// The kernel raises it, too, and knows no mask.
    lent: AtomicBool,
}

impl MsixVector {
    fn new() -> Self {
        let masked = AtomicBool::new(true);
        Self {
            masked,
            pending: AtomicBool::new(false),
            event: OnceLock::new(),
            lent: AtomicBool::new(false),
        }
    }

    /// What the kernel writes to in order to raise it. From [`Msix::hold_back`] on it is connected only while it is not masked:
    /// what is written meanwhile raises it when it is connected again, though the pending bits do not show it.
    pub(crate) fn lend(&self) -> io::Result<EventFd> {
        self.lent.store(true, Ordering::SeqCst);
        self.event()?.try_clone()
    }

    /// Sends the message, or remembers to.
    pub(crate) fn raise(&self) {
        if !self.masked.load(Ordering::SeqCst) {
            return self.signal();
        }
        self.pending.store(true, Ordering::SeqCst);
        // The guest may have unmasked, and looked for pending bits, in between.
        if !self.masked.load(Ordering::SeqCst) {
            self.signal_pending();
        }
    }

    fn unmask(&self) {
        self.masked.store(false, Ordering::SeqCst);
        self.signal_pending();
    }

    fn signal_pending(&self) {
        if self.pending.swap(false, Ordering::SeqCst) {
            self.signal();
        }
    }

    fn signal(&self) {
        if let Some(event) = self.event.get() {
            // Fails only if the counter is about to overflow; then an interrupt is due anyway.
            let _ = event.write(1);
        }
    }

    fn event(&self) -> io::Result<&EventFd> {
        if let Some(event) = self.event.get() {
            return Ok(event);
        }
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        Ok(self.event.get_or_init(|| event))
    }
}

/// The function's table and its connection to the interrupt controller.
///
/// Nothing is connected before the guest unmasks a vector with MSI-X enabled: an irqfd costs time
/// that the start of a VM should not spend. A vector that is only masked keeps its connection.
pub(crate) struct Msix {
    router: Arc<dyn MsiRouter>,
    /// Router's number of vector 0.
    base: u32,
    control: u16,
    table: Vec<[u8; ENTRY]>,
    connected: Vec<Option<MsiMessage>>,
    vectors: Arc<[MsixVector]>,
    warned: bool,
}

impl Msix {
    pub(crate) fn new(router: Arc<dyn MsiRouter>, count: u16) -> io::Result<Self> {
        let mut reset_entry = [0; ENTRY];
        reset_entry[12] = MASKED;
        Ok(Self {
            base: router.allocate(u32::from(count))?,
            router,
            control: 0,
            table: vec![reset_entry; usize::from(count)],
            connected: vec![None; usize::from(count)],
            vectors: (0..count).map(|_| MsixVector::new()).collect(),
            warned: false,
        })
    }

    pub(crate) fn vectors(&self) -> Arc<[MsixVector]> {
        Arc::clone(&self.vectors)
    }

    /// Message control was written.
    pub(crate) fn set_control(&mut self, control: u16) {
        if control != self.control {
            self.control = control;
            (0..self.table.len()).for_each(|index| self.update(index));
        }
    }

    /// Reads the table at `offset`; past its end there are zeros.
    pub(crate) fn read_table(&self, offset: u32, data: &mut [u8]) {
        let bytes = self.table.as_flattened();
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes the table at `offset`.
    pub(crate) fn write_table(&mut self, offset: u32, data: &[u8]) {
        let start = offset as usize;
        let Some(bytes) = self
            .table
            .as_flattened_mut()
            .get_mut(start..start + data.len())
        else {
            return;
        };
        bytes.copy_from_slice(data);
        let last = start + data.len().saturating_sub(1);
        (start / ENTRY..=last / ENTRY).for_each(|index| self.update(index));
    }

    /// Reads the pending bits at `offset`.
    pub(crate) fn read_pba(&self, offset: u32, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            let vectors = self.vectors.iter().skip(at * 8).take(8).enumerate();
            *byte = vectors.fold(0, |bits, (bit, vector)| {
                bits | u8::from(vector.pending.load(Ordering::SeqCst)) << bit
            });
        }
    }

    /// Forgets pending messages (device reset). The kernel does not serve the device any more.
    pub(crate) fn clear_pending(&self) {
        for vector in &*self.vectors {
            vector.pending.store(false, Ordering::SeqCst);
            if vector.lent.swap(false, Ordering::SeqCst)
                && let Some(event) = vector.event.get()
            {
                // Fails where nothing is pending.
                let _ = event.read();
            }
        }
    }

    /// What a snapshot keeps.
    pub(crate) fn save(&self) -> MsixState {
        let pending = (0..).zip(&*self.vectors);
        let pending = pending.filter(|(_, vector)| vector.pending.load(Ordering::SeqCst));
        MsixState {
            table: self.table.clone(),
            pending: pending.map(|(index, _)| index).collect(),
        }
    }

    /// Takes over a saved table of as many vectors, with `control` as message control, and sends what
    /// is pending and not masked.
    pub(crate) fn restore(&mut self, saved: &MsixState, control: u16) -> Result<(), RestoreError> {
        let (found, mine) = (saved.table.len(), self.table.len());
        if found != mine {
            let what = format!("{found} MSI-X vectors instead of {mine}");
            return Err(RestoreError::unfit::<FunctionState>(what));
        }
        self.table.clone_from(&saved.table);
        for &index in &saved.pending {
            let vector = self.vectors.get(usize::from(index)).ok_or_else(|| {
                let what = format!("a message pending for vector {index}");
                RestoreError::unfit::<FunctionState>(what)
            })?;
            vector.pending.store(true, Ordering::SeqCst);
        }
        self.control = control;
        (0..self.table.len()).for_each(|index| self.update(index));
        Ok(())
    }

    /// Lets the kernel raise none that are masked.
    pub(crate) fn hold_back(&mut self) {
        for index in 0..self.table.len() {
            let vector = &self.vectors[index];
            if vector.lent.load(Ordering::SeqCst) && vector.masked.load(Ordering::SeqCst) {
                self.disconnect_one(index);
            }
        }
    }

    /// Makes vector `index` do what the registers say now.
    fn update(&mut self, index: usize) {
        let vector = &self.vectors[index];
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, control, ..] = self.table[index];
        let on = self.control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) == CONTROL_ENABLE;
        if !on || control & MASKED != 0 {
            vector.masked.store(true, Ordering::SeqCst);
            if vector.lent.load(Ordering::SeqCst) {
                self.disconnect_one(index);
            }
            return;
        }
        let message = MsiMessage {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            data: u32::from_le_bytes([d0, d1, d2, d3]),
        };
        if self.connected[index] != Some(message) {
            vector.masked.store(true, Ordering::SeqCst);
            if let Err(error) = self.connect(index, message) {
                self.warn_once(
                    index,
                    &error,
                    "cannot connect MSI-X vector, it stays masked",
                );
                return;
            }
        }
        self.vectors[index].unmask();
    }

    fn connect(&mut self, index: usize, message: MsiMessage) -> io::Result<()> {
        self.connected[index] = None;
        let event = self.vectors[index].event()?;
        self.router
            .connect(self.base + index as u32, message, event)?;
        self.connected[index] = Some(message);
        Ok(())
    }

    /// The guest chooses the message, so it could fill the log.
    fn warn_once(&mut self, index: usize, error: &io::Error, what: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            warn!(vector = index, %error, "{what}");
        }
    }

    /// Ends all connections.
    pub(crate) fn disconnect(&mut self) {
        for index in 0..self.table.len() {
            self.vectors[index].masked.store(true, Ordering::SeqCst);
            self.disconnect_one(index);
        }
    }

    fn disconnect_one(&mut self, index: usize) {
        if self.connected[index].take().is_some()
            && let Some(event) = self.vectors[index].event.get()
            && let Err(error) = self.router.disconnect(self.base + index as u32, event)
        {
            self.warn_once(index, &error, "cannot disconnect MSI-X vector");
        }
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        self.disconnect();
        self.router.release(self.base);
    }
}
