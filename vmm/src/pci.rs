//! The PCI root: one bus with a host bridge and up to 31 functions, reached through configuration
//! ports, ECAM and the memory window. Functions come and go while the vCPUs run: a slot has a lock of its
//! own, under which its function is called, and what an MMIO exit looks at before is read without one.

mod access;
mod function;
mod hotplug;
mod room;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::pci::{BARS, BarAddresses, CONFIG_SPACE_SIZE, PciFunction};
use devices::state::{SaveError, Saved, State};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::access::{ConfigPorts, Ecam, Window};
pub use self::function::Function;
pub use self::hotplug::{EJECT, HotplugSlots, INSERTED, LEN as HOTPLUG_LEN, WANTED};
use self::room::Room;
pub use self::room::high_window;
use crate::layout;
use crate::snapshot::{SnapshotError, restore_device};

/// A device does not fit the bus.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The device number asked for is taken, or there is no such one.
    #[error("PCI slot {0} is not free")]
    Taken(u8),
    /// A memory window is full.
    #[error("No room for a BAR of {size} bytes in the PCI memory window")]
    Window {
        /// Size of the BAR.
        size: u64,
    },
}

/// A device number.
struct Slot<F> {
    place: Mutex<Place<F>>,
    /// Where the function's BARs are decoded now; nowhere if there is none.
    bars: Arc<BarAddresses>,
    /// Sizes of the BARs in bytes.
    sizes: [AtomicU64; BARS],
}

/// What is in a slot.
struct Place<F> {
    /// Elsewhere: most slots have none, and each machine would have the room for all.
    function: Option<Box<F>>,
    /// The guest has ejected it: it is still there, but does not answer any more.
    hidden: bool,
}

impl<F> Place<F> {
    /// The function as far as a guest is concerned.
    fn visible(&mut self) -> Option<&mut F> {
        self.function.as_deref_mut().filter(|_| !self.hidden)
    }
}

impl<F> Slot<F> {
    fn lock(&self) -> MutexGuard<'_, Place<F>> {
        // A panic in a device aborts the process in release builds; in tests the state is still sound.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing of it is decoded any more.
    fn stop_decoding(&self) {
        self.bars.iter().for_each(|bar| bar.set(None));
    }

    /// The BAR that has the `len` bytes at `address`, and where in it.
    fn find(&self, address: u64, len: u64) -> Option<(usize, u64)> {
        let mut bars = self.bars.iter().zip(&self.sizes).enumerate();
        bars.find_map(|(bar, (decoded, size))| {
            let offset = address.checked_sub(decoded.get()?)?;
            let end = offset.checked_add(len)?;
            (end <= size.load(Ordering::Acquire)).then_some((bar, offset))
        })
    }
}

impl<F> Default for Slot<F> {
    fn default() -> Self {
        let (function, hidden) = (None, false);
        Self {
            place: Mutex::new(Place { function, hidden }),
            bars: Arc::default(),
            sizes: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// The bus, shared by the vCPUs and whoever adds and removes devices.
pub struct PciRoot<F = Function> {
    /// Device numbers 1 and up; 0 is the host bridge.
    slots: [Slot<F>; layout::MAX_PCI_DEVICES],
    /// Device numbers that have a function, a bit each: where an access looks for its BAR.
    taken: AtomicU32,
    config_address: AtomicU32,
    /// Where BARs go that do not fit their slot's part of the window.
    room: Mutex<Room>,
}

impl<F: PciFunction> PciRoot<F> {
    /// A bus with the host bridge only; large BARs lie in `high`.
    pub fn new(high: Range<u64>) -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot::default()),
            taken: AtomicU32::new(0),
            config_address: AtomicU32::new(0),
            room: Mutex::new(Room::new(high)),
        }
    }

    /// The slot with this device number, from 1 on.
    fn slot(&self, device: usize) -> Option<&Slot<F>> {
        self.slots.get(device.checked_sub(1)?)
    }

    /// Puts `function` into the slot with device number `device`, and assigns its BARs: one that fits the slot's part of
    /// the window is there, whatever else is on the bus, and what has more or larger ones follows behind the slots.
    pub fn attach(&self, device: u8, mut function: F) -> Result<(), AttachError> {
        let slot = self.slot(device.into()).ok_or(AttachError::Taken(device))?;
        let mut place = slot.lock();
        if place.function.is_some() {
            return Err(AttachError::Taken(device));
        }
        let sizes: [u64; BARS] = std::array::from_fn(|bar| function.bar_size(bar));
        let is_small = sizes[0] <= layout::PCI_SLOT_WINDOW && sizes[1..].iter().all(|it| *it == 0);
        let part = layout::PCI_WINDOW + (u64::from(device) - 1) * layout::PCI_SLOT_WINDOW;
        for (bar, size) in sizes.into_iter().enumerate().filter(|(_, size)| *size > 0) {
            let base = match is_small && !function.is_high(bar) {
                true => part,
                false => self.make_room(size, function.is_high(bar))?,
            };
            slot.sizes[bar].store(size, Ordering::Release);
            function.assign_bar(bar, base, &slot.bars);
        }
        place.function = Some(Box::new(function));
        self.taken.fetch_or(bit(device), Ordering::AcqRel);
        Ok(())
    }

    fn make_room(&self, size: u64, is_high: bool) -> Result<u64, AttachError> {
        // Two numbers, each written whole.
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        room.take(size, is_high).ok_or(AttachError::Window { size })
    }

    /// From now on nothing answers in this slot, whatever is there.
    pub fn hide(&self, device: u8) {
        if let Some(slot) = self.slot(device.into()) {
            let mut place = slot.lock();
            place.hidden = place.function.is_some();
            slot.stop_decoding();
        }
    }

    /// Takes the function out of a slot, which is free then. It may have requests in flight.
    pub fn detach(&self, device: u8) -> Option<F> {
        let slot = self.slot(device.into())?;
        let mut place = slot.lock();
        place.hidden = false;
        slot.stop_decoding();
        self.taken.fetch_and(!bit(device), Ordering::AcqRel);
        place.function.take().map(|function| *function)
    }

    /// Calls `action` on every function.
    pub fn for_each(&self, mut action: impl FnMut(&mut F)) {
        for slot in &self.slots {
            slot.lock().function.as_deref_mut().map(&mut action);
        }
    }

    /// The state of the bus and of every function, by its place; they are paused.
    pub fn save(&self) -> Result<BTreeMap<String, Saved>, SaveError> {
        let address = self.config_address.load(Ordering::Acquire);
        let root = Saved::new(&RootState { address })?;
        let mut all = BTreeMap::from([(ROOT.to_owned(), root)]);
        for (device, slot) in (1..).zip(&self.slots) {
            if let Some(function) = &slot.lock().function {
                all.insert(name_of(device), function.save()?);
            }
        }
        Ok(all)
    }

    /// Takes over what [`PciRoot::save`] told of a bus with the same functions.
    pub fn restore(&self, saved: &BTreeMap<String, Saved>) -> Result<(), SnapshotError> {
        restore_device(saved, ROOT, |saved| {
            let RootState { address } = saved.state()?;
            self.config_address.store(address, Ordering::Release);
            Ok(())
        })?;
        for (device, slot) in (1..).zip(&self.slots) {
            if let Some(function) = &mut slot.lock().function {
                restore_device(saved, &name_of(device), |saved| function.restore(saved))?;
            }
        }
        Ok(())
    }

    fn config_read(&self, device: usize, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        if usize::from(offset) + data.len() > usize::from(CONFIG_SPACE_SIZE) {
            return;
        }
        if device == 0 {
            return host_bridge_read(offset, data);
        }
        if let Some(slot) = self.slot(device)
            && let Some(function) = slot.lock().visible()
        {
            function.config_read(offset, data);
        }
    }

    fn config_write(&self, device: usize, offset: u16, data: &[u8]) {
        if usize::from(offset) + data.len() > usize::from(CONFIG_SPACE_SIZE) {
            return;
        }
        if let Some(slot) = self.slot(device)
            && let Some(function) = slot.lock().visible()
        {
            function.config_write(offset, data);
        }
    }

    /// Calls `action` with the function one of whose BARs has the `len` bytes at `address`, which one, and where in it.
    fn at_bar(&self, address: u64, len: usize, action: impl FnOnce(&mut F, usize, u64)) {
        let found = numbers(self.taken.load(Ordering::Acquire)).find_map(|device| {
            let slot = self.slot(device.into())?;
            Some((slot, slot.find(address, len as u64)?))
        });
        let Some((slot, (bar, offset))) = found else {
            return;
        };
        // Another may be there by now.
        if let Some(function) = slot.lock().visible()
            && (offset.checked_add(len as u64)).is_some_and(|end| end <= function.bar_size(bar))
        {
            action(function, bar, offset);
        }
    }
}

/// A device number as a bit; there are 32.
fn bit(device: u8) -> u32 {
    1_u32.checked_shl(device.into()).unwrap_or(0)
}

/// The device numbers of these bits.
fn numbers(bits: u32) -> impl Iterator<Item = u8> {
    (0..32).filter(move |device| bits & bit(*device) != 0)
}

/// What a snapshot keeps of the bus. The registers of [`HotplugSlots`] are not of it: they tell of devices that came
/// while the machine ran, with which none is made.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RootState {
    /// What the guest has written to the address port, where there is one.
    address: u32,
}

impl State for RootState {
    const KIND: &'static str = "PCI bus";
    const VERSION: u32 = 1;
}

/// What a snapshot calls the bus.
const ROOT: &str = "PCI";

/// What a snapshot calls a place on the bus.
fn name_of(device: u8) -> String {
    format!("PCI {device}")
}

/// Red Hat's generic PCI Express host bridge; it has no registers beyond its identity.
const HOST_BRIDGE: [u8; 16] = [
    0x36, 0x1b, 0x08, 0x00, // vendor, device
    0x00, 0x00, 0x00, 0x00, // command, status
    0x00, 0x00, 0x00, 0x06, // revision, class: host bridge
    0x00, 0x00, 0x00, 0x00, // header type 0
];

fn host_bridge_read(offset: u16, data: &mut [u8]) {
    for (index, byte) in data.iter_mut().enumerate() {
        *byte = HOST_BRIDGE
            .get(usize::from(offset) + index)
            .copied()
            .unwrap_or(0);
    }
}

#[cfg(test)]
mod tests;
