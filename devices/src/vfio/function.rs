//! A device of the host as a function on the guest's bus.

use std::io;
use std::sync::Arc;

use tracing::warn;
use vmm_sys_util::eventfd::EventFd;

use super::config::{Config, Interrupts, Written};
use super::host::{CONFIG, DeviceMemory, HostDevice, Physical, Windows};
use super::msi::Msi;
use super::shape::{MsixShape, Shape};
use crate::irq::MsiRouter;
use crate::pci::msix::Msix;
use crate::pci::{BARS, BarAddresses, PciFunction};
use crate::state::{RestoreError, SaveError, Saved};
use crate::thread::{Executor, execute};

/// Why a machine with such a device is not saved.
const NOT_SAVED: &str =
    "a machine with devices of the host is not saved: what they hold stays with them";

/// Message control of an MSI-X capability: on.
const ENABLE: u16 = 1 << 15;

/// What the machine gives to each device of the host.
#[derive(Clone)]
pub struct VfioContext {
    /// Connects interrupts.
    pub router: Arc<dyn MsiRouter>,
    /// Shows memory to the guest.
    pub windows: Arc<dyn Windows>,
    /// Makes the calls.
    pub executor: Arc<dyn Executor>,
}

/// A device of the host as a PCI function.
pub struct VfioFunction {
    name: String,
    device: Arc<dyn Physical>,
    memory: [Vec<(u64, DeviceMemory)>; BARS],
    context: VfioContext,
    config: Config,
    msix: Option<Msix>,
    msi: Option<Msix>,
    /// The interrupts that the kernel raises now.
    active: Option<Interrupts>,
    bars: Arc<BarAddresses>,
    /// Where each BAR is shown now, and the windows.
    shown: [Option<(u64, Vec<u32>)>; BARS],
    warned: bool,
}

impl VfioFunction {
    /// Resets the device and makes a function of it.
    pub fn new(device: Arc<HostDevice>, context: VfioContext) -> io::Result<Self> {
        let (name, shape) = (device.name().to_owned(), device.shape.clone());
        let memory = device.memory.clone();
        Self::over(name, device, shape, memory, context)
    }

    pub(super) fn over(
        name: String,
        device: Arc<dyn Physical>,
        shape: Shape,
        memory: [Vec<(u64, DeviceMemory)>; BARS],
        context: VfioContext,
    ) -> io::Result<Self> {
        device.reset()?;
        let vectors = |count| Msix::new(context.router.clone(), count);
        let msix = shape.msix.map(|msix| vectors(msix.vectors)).transpose()?;
        let config = Config::new(shape);
        let msi = config.msi().map(|msi| vectors(msi.vectors())).transpose()?;
        Ok(Self {
            name,
            device,
            memory,
            context,
            config,
            msix,
            msi,
            active: None,
            bars: Arc::default(),
            shown: Default::default(),
            warned: false,
        })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has the executor do something with the device.
    fn on_executor<T: Send + 'static>(
        &self,
        action: impl FnOnce(&dyn Physical) -> T + Send + 'static,
    ) -> Option<T> {
        let device = self.device.clone();
        execute(&*self.context.executor, move || action(&*device))
    }

    fn read_device(&self, region: usize, offset: u64, data: &mut [u8]) {
        let len = data.len();
        let read = self.on_executor(move |device| {
            let mut data = [0xff; 8];
            device.read(region, offset, &mut data[..len.min(8)]);
            data
        });
        let read = read.unwrap_or([0xff; 8]);
        data.iter_mut().zip(read).for_each(|(to, from)| *to = from);
    }

    fn write_device(&self, region: usize, offset: u64, data: &[u8]) {
        let data = data.to_owned();
        self.on_executor(move |device| device.write(region, offset, &data));
    }

    /// Takes away windows of BARs that are not there any more.
    fn hide(&mut self) {
        for bar in 0..BARS {
            let base = self.config.decoded(bar);
            if let Some((_, windows)) = self.shown[bar].take_if(|(shown, _)| Some(*shown) != base) {
                self.hide_all(windows);
            }
            self.bars[bar].set(base);
        }
    }

    fn hide_all(&mut self, windows: Vec<u32>) {
        for window in windows {
            if let Err(error) = self.context.windows.hide(window) {
                self.warn_once("cannot take memory from the guest", &error);
            }
        }
    }

    /// Shows what is decoded and is not seen yet.
    fn show(&mut self) {
        for bar in 0..BARS {
            let Some(base) = self.config.decoded(bar) else {
                continue;
            };
            if self.shown[bar].is_some() {
                continue;
            }
            let mut windows = Vec::new();
            for (offset, memory) in self.memory[bar].clone() {
                match self.context.windows.show(base + offset, memory) {
                    Ok(window) => windows.push(window),
                    // It is served by calls then, which is slow.
                    Err(error) => self.warn_once("cannot show memory to the guest", &error),
                }
            }
            self.shown[bar] = Some((base, windows));
        }
    }

    fn table_of(&mut self, interrupts: Interrupts) -> Option<&mut Msix> {
        match interrupts {
            Interrupts::Msi { .. } => self.msi.as_mut(),
            Interrupts::Msix { .. } => self.msix.as_mut(),
        }
    }

    /// Has the kernel raise the interrupts that the guest has enabled, and no others.
    fn update_interrupts(&mut self) {
        let wanted = self.config.interrupts();
        if wanted != self.active {
            self.disconnect();
            if let Some(interrupts) = wanted {
                match self.connect(interrupts) {
                    Ok(()) => self.active = wanted,
                    Err(error) => self.warn_once("cannot have interrupts", &error),
                }
            }
        }
        let msix_control = self.config.msix_control();
        match (self.active, self.config.msi(), &mut self.msi) {
            (Some(Interrupts::Msix { .. }), ..) => {
                if let Some(table) = &mut self.msix {
                    table.set_control(msix_control);
                }
            }
            (Some(Interrupts::Msi { .. }), Some(registers), Some(table)) => {
                write_entries(registers, table);
                table.set_control(ENABLE);
            }
            _ => {}
        }
    }

    fn connect(&mut self, interrupts: Interrupts) -> io::Result<()> {
        let (Interrupts::Msi { vectors } | Interrupts::Msix { vectors }) = interrupts;
        let Some(table) = self.table_of(interrupts) else {
            return Ok(());
        };
        let lent = table.vectors();
        let events: Vec<EventFd> = (lent.iter())
            .take(vectors.into())
            .map(|vector| vector.lend())
            .collect::<io::Result<_>>()?;
        let connected = self.on_executor(move |device| device.connect(interrupts, &events));
        connected.unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
    }

    fn disconnect(&mut self) {
        let Some(interrupts) = self.active.take() else {
            return;
        };
        if let Some(table) = self.table_of(interrupts) {
            table.set_control(0);
        }
        let result = self.on_executor(move |device| device.disconnect(interrupts));
        if let Some(table) = self.table_of(interrupts) {
            table.clear_pending();
        }
        if let Some(Err(error)) = result {
            self.warn_once("cannot turn interrupts off", &error);
        }
    }

    /// The guest decides over all of it, so it could fill the log.
    fn warn_once(&mut self, what: &str, error: &io::Error) {
        if !std::mem::replace(&mut self.warned, true) {
            warn!(device = self.name, %error, "{what}");
        }
    }

    /// Where in the table of messages an access is.
    fn in_table(&self, bar: usize, offset: u64) -> Option<u32> {
        let MsixShape { table, len, .. } =
            self.config.shape().msix.filter(|msix| msix.bar == bar)?;
        let place = offset.checked_sub(table.into())?;
        (place < len.into()).then_some(place as u32)
    }
}

/// The messages of an MSI capability as entries of a table.
fn write_entries(registers: &Msi, table: &mut Msix) {
    for index in 0..registers.enabled().unwrap_or(0) {
        let entry = registers.entry(index);
        table.write_table(u32::from(index) * entry.len() as u32, &entry);
    }
}

impl PciFunction for VfioFunction {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        let mut word = [0; 4];
        self.read_device(CONFIG, u64::from(offset & !3), &mut word);
        let word = self.config.read(offset & !3, u32::from_le_bytes(word));
        let bytes = word.to_le_bytes();
        let from = usize::from(offset % 4);
        data.copy_from_slice(&bytes[from..from + data.len()]);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        let from = usize::from(offset % 4);
        let (mut value, mut bits) = ([0; 4], [0; 4]);
        value[from..from + data.len()].copy_from_slice(data);
        bits[from..from + data.len()].fill(0xff);
        let (value, bits) = (u32::from_le_bytes(value), u32::from_le_bytes(bits));
        let Written {
            passed,
            decoding,
            interrupts,
        } = self.config.write(offset & !3, value, bits);
        // Nothing is seen of the device while it does not answer, and only then: the kernel would not have it either.
        if decoding {
            self.hide();
        }
        if let Some(passed) = passed {
            self.write_device(CONFIG, offset.into(), &passed[from..from + data.len()]);
        }
        if decoding {
            self.show();
        }
        if interrupts {
            self.update_interrupts();
        }
    }

    fn bar_size(&self, bar: usize) -> u64 {
        (self.config.shape().bars.get(bar)).map_or(0, |bar| bar.size)
    }

    fn is_high(&self, bar: usize) -> bool {
        (self.config.shape().bars.get(bar)).is_some_and(|bar| bar.is_wide)
    }

    fn assign_bar(&mut self, bar: usize, base: u64, decoded: &Arc<BarAddresses>) {
        self.bars = decoded.clone();
        self.config.set_bar(bar, base);
    }

    fn bar_read(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
        match (self.in_table(bar, offset), &self.msix) {
            (Some(place), Some(table)) => table.read_table(place, data),
            _ => self.read_device(bar, offset, data),
        }
    }

    fn bar_write(&mut self, bar: usize, offset: u64, data: &[u8]) {
        match (self.in_table(bar, offset), &mut self.msix) {
            (Some(place), Some(table)) => table.write_table(place, data),
            _ => self.write_device(bar, offset, data),
        }
    }

    // What the device has been told to do it does: only its driver could stop it.
    fn pause(&mut self) {}

    fn resume(&mut self) {}

    fn save(&self) -> Result<Saved, SaveError> {
        Err(SaveError::Connected(NOT_SAVED))
    }

    fn restore(&mut self, _saved: &Saved) -> Result<(), RestoreError> {
        Err(RestoreError::Unfit {
            kind: "host device",
            what: NOT_SAVED.to_owned(),
        })
    }

    fn shutdown(&mut self) {
        self.disconnect();
        for bar in 0..BARS {
            if let Some((_, windows)) = self.shown[bar].take() {
                self.hide_all(windows);
            }
            self.bars[bar].set(None);
        }
        // It reaches for guest RAM no more.
        let stopped = self.on_executor(|device| {
            device.write(CONFIG, 4, &[0, 0]);
            device.reset()
        });
        if let Some(Err(error)) = stopped {
            self.warn_once("cannot reset the device", &error);
        }
    }
}
