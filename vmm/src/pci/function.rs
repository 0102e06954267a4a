//! What may be in a slot.

use std::sync::Arc;

use devices::pci::{BarAddresses, PciFunction};
use devices::state::{RestoreError, SaveError, Saved};
use devices::vfio::VfioFunction;
use devices::virtio::CommandError;
use devices::virtio::pci::VirtioPciFunction;
use devices::watchdog::WatchdogFunction;
use serde_json::{Value, json};

/// A function on the bus.
pub enum Function {
    /// A virtio device.
    Virtio(VirtioPciFunction),
    /// A device of the host.
    Vfio(VfioFunction),
    /// A watchdog.
    Watchdog(WatchdogFunction),
}

/// Calls a method of whichever it is.
macro_rules! each {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Self::Virtio(function) => function.$method($($argument),*),
            Self::Vfio(function) => function.$method($($argument),*),
            Self::Watchdog(function) => function.$method($($argument),*),
        }
    };
}

impl Function {
    /// Has a virtio device called `device` serve a command; `None` if this is none.
    pub fn command(&mut self, device: &str, order: &Value) -> Option<Result<(), CommandError>> {
        match self {
            Self::Virtio(function) if function.name() == device => {
                Some(function.command(order.clone()))
            }
            _ => None,
        }
    }

    /// Name and counters of a device that has some.
    pub fn stats(&self) -> Option<(String, Value)> {
        match self {
            Self::Virtio(function) => Some((function.name().to_owned(), function.stats())),
            Self::Vfio(function) => Some((function.name().to_owned(), json!({"type": "host"}))),
            Self::Watchdog(_) => None,
        }
    }
}

impl PciFunction for Function {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        each!(self.config_read(offset, data));
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        each!(self.config_write(offset, data));
    }

    fn bar_size(&self, bar: usize) -> u64 {
        each!(self.bar_size(bar))
    }

    fn is_high(&self, bar: usize) -> bool {
        each!(self.is_high(bar))
    }

    fn assign_bar(&mut self, bar: usize, base: u64, decoded: &Arc<BarAddresses>) {
        each!(self.assign_bar(bar, base, decoded));
    }

    fn bar_read(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
        each!(self.bar_read(bar, offset, data));
    }

    fn bar_write(&mut self, bar: usize, offset: u64, data: &[u8]) {
        each!(self.bar_write(bar, offset, data));
    }

    fn pause(&mut self) {
        each!(self.pause());
    }

    fn resume(&mut self) {
        each!(self.resume());
    }

    fn save(&self) -> Result<Saved, SaveError> {
        each!(self.save())
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        each!(self.restore(saved))
    }

    fn shutdown(&mut self) {
        each!(self.shutdown());
    }
}
