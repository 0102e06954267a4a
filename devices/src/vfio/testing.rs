//! A device of the host that is none, for tests.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::config::Interrupts;
use super::function::{VfioContext, VfioFunction};
use super::host::{CONFIG, DeviceMemory, Physical, Windows, without};
use super::shape::Shape;
use crate::pci::BARS;

/// Power management.
pub(super) const POWER: u16 = 0x40;
pub(super) const MSI: u16 = 0x50;
pub(super) const MSIX: u16 = 0x70;
/// Of its BARs: number 0 has 64 bits and is 64 KiB, number 2 has 32 and is 4 KiB, number 3 is of ports.
pub(super) const SIZES: [u64; BARS] = [0x1_0000, 0, 0x1000, 0x20, 0, 0];

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers that are memory, and what was asked of it.
pub struct FakeDevice {
    pub(super) config: Mutex<[u8; 4096]>,
    log: Mutex<Vec<String>>,
    events: Mutex<Vec<EventFd>>,
}

impl Default for FakeDevice {
    fn default() -> Self {
        let mut config = [0; 4096];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0x86, 0x80, 0x34, 0x12]);
        put(0x06, &[0x10, 0]);
        // Several functions, of which this is one.
        put(0x0e, &[0x80]);
        put(0x10, &[0x0c, 0, 0, 0xfe]);
        put(0x18, &[0, 0, 0, 0xfd]);
        put(0x1c, &[1, 0xc0]);
        put(0x30, &[1, 0, 0, 0xfc]);
        put(0x34, &[POWER as u8]);
        put(0x3c, &[11, 1]);
        put(POWER.into(), &[0x01, MSI as u8, 0x03, 0, 0x08, 0x81]);
        // Four messages, 64 bits, maskable.
        put(MSI.into(), &[0x05, MSIX as u8, 0x84, 0x01]);
        // Three vectors, in BAR 0.
        put(
            MSIX.into(),
            &[0x11, 0x90, 2, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0],
        );
        // A vendor's, whose next one is itself.
        put(0x90, &[0x09, 0x90, 8, 0, 0xaa, 0xbb]);
        // Serial number, virtual functions, error reporting.
        put(0x100, &[0x03, 0, 0x01, 0x14]);
        put(0x140, &[0x10, 0, 0x01, 0x18]);
        put(0x180, &[0x01, 0, 0x02, 0]);
        Self {
            config: Mutex::new(config),
            log: Mutex::default(),
            events: Mutex::default(),
        }
    }
}

impl FakeDevice {
    /// Puts another byte into its configuration space.
    pub fn set_config(&self, offset: u16, byte: u8) {
        if let Some(place) = lock(&self.config).get_mut(usize::from(offset)) {
            *place = byte;
        }
    }

    /// What it was asked since the last call.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.log))
    }

    /// Raises an interrupt, if there is somebody who listens.
    pub fn raise(&self, index: usize) {
        if let Some(event) = lock(&self.events).get(index) {
            // Fails where it has been raised more often than can be counted.
            let _ = event.write(1);
        }
    }

    fn say(&self, what: String) {
        lock(&self.log).push(what);
    }

    pub(super) fn shape(&self) -> Shape {
        Shape::read(4096, SIZES, |offset| {
            let mut data = [0; 4];
            self.read(CONFIG, offset.into(), &mut data);
            u32::from_le_bytes(data)
        })
    }

    /// As a function for a guest.
    pub fn function(self: &Arc<Self>, context: VfioContext) -> io::Result<VfioFunction> {
        let shape = self.shape();
        let memory = std::array::from_fn(|bar| {
            // What may be mapped, without the pages of the table.
            let areas = without(&(0..shape.bars[bar].size), &shape.table_pages(bar));
            areas
                .map(|area| (area.start, DeviceMemory::for_test(area.end - area.start)))
                .collect()
        });
        VfioFunction::over("gpu".to_owned(), self.clone(), shape, memory, context)
    }
}

impl Physical for FakeDevice {
    fn read(&self, region: usize, offset: u64, data: &mut [u8]) {
        match region {
            CONFIG => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let config = lock(&self.config);
                let found = config.get(from..from.saturating_add(data.len()));
                match found {
                    Some(found) => data.copy_from_slice(found),
                    None => data.fill(0xff),
                }
            }
            _ => data.fill(offset as u8),
        }
    }

    fn write(&self, region: usize, offset: u64, data: &[u8]) {
        if region == CONFIG {
            for (place, byte) in (offset as u16..).zip(data) {
                self.set_config(place, *byte);
            }
        }
        self.say(format!("write {region} {offset:#x} {data:x?}"));
    }

    fn connect(&self, interrupts: Interrupts, events: &[EventFd]) -> io::Result<()> {
        self.say(format!("connect {interrupts:?}"));
        let copies = events.iter().map(EventFd::try_clone);
        *lock(&self.events) = copies.collect::<io::Result<_>>()?;
        Ok(())
    }

    fn disconnect(&self, interrupts: Interrupts) -> io::Result<()> {
        self.say(format!("disconnect {interrupts:?}"));
        lock(&self.events).clear();
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        self.say("reset".to_owned());
        Ok(())
    }
}

/// What a guest sees of devices' memory: where, and how many bytes.
#[derive(Default)]
pub struct FakeWindows(Mutex<Vec<Option<(u64, u64)>>>);

impl FakeWindows {
    /// All of it, in the order in which it was shown.
    pub fn now(&self) -> Vec<(u64, u64)> {
        lock(&self.0).iter().flatten().copied().collect()
    }
}

impl Windows for FakeWindows {
    fn show(&self, base: u64, memory: DeviceMemory) -> io::Result<u32> {
        let mut seen = lock(&self.0);
        let free = seen.iter().position(Option::is_none).unwrap_or(seen.len());
        let len = seen.len().max(free + 1);
        seen.resize(len, None);
        seen[free] = Some((base, memory.bytes()));
        Ok(free as u32)
    }

    fn hide(&self, window: u32) -> io::Result<()> {
        match lock(&self.0)
            .get_mut(window as usize)
            .and_then(Option::take)
        {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}
