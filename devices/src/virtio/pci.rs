//! The virtio PCI transport (virtio 1.2, 4.1): one modern device per function, one BAR, MSI-X only.
//!
//! Registers are served on vCPU threads under the function's lock. Queues belong to workers from
//! `DRIVER_OK` to reset; what both sides touch is in `interrupts`, lock-free.

mod config_space;
mod interrupts;
mod layout;
mod queue_registers;
mod registers;
mod running;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use serde_json::Value;
use thiserror::Error;

use crate::GuestMemory;
use crate::irq::{Doorbells, MsiRouter};
use crate::pci::msix::Msix;
use crate::pci::{BarAddresses, PciFunction};
use crate::state::transport::FunctionState;
use crate::state::{RestoreError, SaveError, Saved};
use crate::thread::{Executor, ThreadHook};
use crate::virtio::pci::config_space::ConfigSpace;
use crate::virtio::pci::interrupts::Interrupts;
use crate::virtio::pci::layout::Region;
use crate::virtio::pci::registers::{Action, Registers};
use crate::virtio::pci::running::Running;
use crate::virtio::{CommandError, VirtioDevice};

/// What the machine gives to each virtio function.
#[derive(Clone)]
pub struct VirtioPciContext {
    /// Guest memory.
    pub mem: Arc<GuestMemory>,
    /// Connects MSI-X vectors.
    pub router: Arc<dyn MsiRouter>,
    /// Connects queue doorbells.
    pub doorbells: Arc<dyn Doorbells>,
    /// Restricts worker threads.
    pub thread_hook: ThreadHook,
    /// Makes worker threads.
    pub executor: Arc<dyn Executor>,
}

/// A virtio device that cannot become a PCI function.
#[derive(Debug, Error)]
pub enum CreateFunctionError {
    /// More queues than the BAR has vectors and doorbells for, or none.
    #[error("Virtio device {name} has {queues} queues, not 1 to {max}")]
    Queues {
        /// The device's name.
        name: String,
        /// Its queues.
        queues: usize,
        /// The most it may have.
        max: u16,
    },
    /// A queue whose largest size is not a power of two up to 32768.
    #[error("Virtio device {name} has a queue of an impossible size")]
    QueueSize {
        /// The device's name.
        name: String,
        /// The cause.
        #[source]
        source: virtio_queue::Error,
    },
    /// No interrupt vectors are left.
    #[error("Cannot reserve {count} interrupt vectors for virtio device {name}")]
    Vectors {
        /// The device's name.
        name: String,
        /// Vectors wanted.
        count: u16,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A virtio device as a PCI function.
pub struct VirtioPciFunction {
    device: Box<dyn VirtioDevice>,
    context: VirtioPciContext,
    config: ConfigSpace,
    registers: Registers,
    msix: Msix,
    interrupts: Arc<Interrupts>,
    bars: Arc<BarAddresses>,
    /// The workers, from `DRIVER_OK` to reset.
    running: Option<Running>,
    /// The machine is paused.
    paused: bool,
    /// The driver used the device before it was saved, and it was not started since.
    resumed: bool,
}

impl VirtioPciFunction {
    /// Wraps `device`. Starts nothing: no thread, no eventfd, no interrupt route.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        context: VirtioPciContext,
    ) -> Result<Self, CreateFunctionError> {
        let vectors = check_queues(&*device)?;
        let name = device.name();
        let msix = Msix::new(Arc::clone(&context.router), vectors).map_err(|source| {
            CreateFunctionError::Vectors {
                name: name.to_owned(),
                count: vectors,
                source,
            }
        })?;
        let queues = device.queue_sizes();
        let registers = Registers::new(device.features(), queues).map_err(|source| {
            let name = name.to_owned();
            CreateFunctionError::QueueSize { name, source }
        })?;
        Ok(Self {
            config: ConfigSpace::new(device.info(), vectors),
            registers,
            interrupts: Arc::new(Interrupts::new(name, msix.vectors(), queues.len())),
            msix,
            bars: Arc::default(),
            running: None,
            paused: false,
            resumed: false,
            device,
            context,
        })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// The device's counters.
    pub fn stats(&self) -> Value {
        self.device.stats()
    }

    /// Has the device serve a command, and tells the driver what that changed.
    pub fn command(&mut self, command: Value) -> Result<(), CommandError> {
        let effect = self.device.command(command)?;
        if effect.config_changed {
            self.interrupts.bump_generation();
            if self.registers.is_live() {
                self.interrupts.raise_config();
            }
        }
        Ok(())
    }

    fn activate(&mut self) {
        let started = Running::start(
            &mut *self.device,
            &self.registers,
            &self.context,
            &self.interrupts,
            std::mem::take(&mut self.resumed),
        );
        match started {
            Ok(running) => {
                let running = self.running.insert(running);
                running.place_doorbells(&*self.context.doorbells, self.bars[0].get());
                self.msix.hold_back();
            }
            Err(error) => self.interrupts.fail(&error),
        }
    }

    /// Lets the workers work as long as machine and driver let them. A device that was started while it
    /// might not access memory starts when it may.
    fn update_work(&mut self) {
        let working = !self.paused && self.config.may_access_memory();
        match &mut self.running {
            Some(running) => running.set_working(working),
            None if working && self.registers.is_live() && !self.interrupts.needs_reset() => {
                self.activate();
            }
            None => {}
        }
    }

    /// Ends the workers; their requests in flight complete first.
    fn halt(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.place_doorbells(&*self.context.doorbells, None);
            running.stop();
        }
    }

    fn reset(&mut self) {
        self.halt();
        self.resumed = false;
        self.registers.reset();
        self.interrupts.reset();
        self.msix.clear_pending();
    }

    fn update_decoding(&mut self) {
        let base = self.config.decoded();
        if base == self.bars[0].get() {
            return;
        }
        self.bars[0].set(base);
        if let Some(running) = &mut self.running {
            running.place_doorbells(&*self.context.doorbells, base);
        }
    }

    fn read_window(&mut self) {
        if let Some(window) = self.config.window() {
            let mut data = self.config.window_data();
            self.bar_read(0, window.offset, &mut data[..window.len]);
            self.config.set_window_data(data);
        }
    }

    fn write_window(&mut self) {
        if let Some(window) = self.config.window() {
            let data = self.config.window_data();
            self.bar_write(0, window.offset, &data[..window.len]);
        }
    }
}

/// Returns the number of vectors: one per queue, and one for configuration changes.
fn check_queues(device: &dyn VirtioDevice) -> Result<u16, CreateFunctionError> {
    let name = || device.name().to_owned();
    let sizes = device.queue_sizes();
    let max = layout::MAX_VECTORS - 1;
    match u16::try_from(sizes.len()) {
        Ok(queues) if (1..=max).contains(&queues) => Ok(queues + 1),
        _ => Err(CreateFunctionError::Queues {
            name: name(),
            queues: sizes.len(),
            max,
        }),
    }
}

impl PciFunction for VirtioPciFunction {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if ConfigSpace::is_window(offset) {
            self.read_window();
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        let touched = self.config.write(offset, data);
        if touched.decoding {
            self.update_decoding();
            self.update_work();
        }
        if touched.msix {
            self.msix.set_control(self.config.msix_control());
        }
        if touched.window {
            self.write_window();
        }
    }

    fn bar_size(&self, bar: usize) -> u64 {
        match bar {
            0 => layout::BAR_SIZE,
            _ => 0,
        }
    }

    fn assign_bar(&mut self, _bar: usize, base: u64, decoded: &Arc<BarAddresses>) {
        self.bars = decoded.clone();
        self.config.set_bar(base);
        self.update_decoding();
    }

    fn bar_read(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((region, offset)) = layout::locate(offset, data.len()) else {
            return;
        };
        match region {
            Region::Common => self.registers.read(offset, data, &self.interrupts),
            Region::Isr if offset == 0 && !data.is_empty() => data[0] = self.interrupts.take_isr(),
            Region::Isr | Region::Notify => {}
            Region::Device => self.device.read_config(u64::from(offset), data),
            Region::MsixTable => self.msix.read_table(offset, data),
            Region::MsixPba => self.msix.read_pba(offset, data),
        }
    }

    fn bar_write(&mut self, _bar: usize, offset: u64, data: &[u8]) {
        let Some((region, offset)) = layout::locate(offset, data.len()) else {
            return;
        };
        match region {
            Region::Common => match self.registers.write(offset, data, &self.interrupts) {
                Some(Action::Reset) => self.reset(),
                Some(Action::Activate) => self.update_work(),
                None => {}
            },
            Region::Device => self.device.write_config(u64::from(offset), data),
            Region::Notify => {
                if let Some(running) = &self.running {
                    running.kick(offset / layout::NOTIFY_MULTIPLIER);
                }
            }
            Region::MsixTable => self.msix.write_table(offset, data),
            Region::Isr | Region::MsixPba => {}
        }
    }

    fn pause(&mut self) {
        self.paused = true;
        self.update_work();
    }

    fn resume(&mut self) {
        self.paused = false;
        self.update_work();
    }

    fn save(&self) -> Result<Saved, SaveError> {
        if !self.paused {
            return Err(SaveError::NotPaused(self.name().to_owned()));
        }
        let live = self.running.iter().flat_map(Running::queues).collect();
        Saved::new(&FunctionState {
            config: self.config.save(),
            registers: self.registers.save(&live),
            interrupts: self.interrupts.save(),
            msix: self.msix.save(),
            device: self.device.save()?,
        })
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let state: FunctionState = saved.state()?;
        self.paused = true;
        self.config.restore(&state.config)?;
        self.registers.restore(&state.registers)?;
        self.interrupts.restore(&state.interrupts)?;
        self.device.restore(&state.device)?;
        self.resumed = self.registers.is_live();
        self.update_decoding();
        self.msix.restore(&state.msix, self.config.msix_control())
    }

    fn shutdown(&mut self) {
        self.halt();
        self.msix.disconnect();
    }
}

impl Drop for VirtioPciFunction {
    fn drop(&mut self) {
        self.halt();
    }
}
