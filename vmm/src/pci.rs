//! The PCI root: one bus with a host bridge and up to 31 functions, reached through configuration
//! ports, ECAM and the memory window.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::bus::BusDevice;
use devices::pci::{BarAddress, CONFIG_SPACE_SIZE, PciFunction};
use devices::state::{SaveError, Saved};
use devices::virtio::pci::VirtioPciFunction;
use thiserror::Error;

use crate::layout;
use crate::snapshot::{SnapshotError, restore_device};

/// A device does not fit the bus.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The device number asked for is taken, or there is no such one.
    #[error("PCI slot {0} is not free")]
    Taken(u8),
    /// A slot's part of the memory window is too small.
    #[error("No room for a BAR of {size} bytes in a slot's part of the PCI memory window")]
    Window {
        /// Size of the BAR.
        size: u64,
    },
}

struct Slot<F> {
    function: Mutex<F>,
    bar: Arc<BarAddress>,
    bar_size: u64,
}

/// The bus. Built before the vCPUs run, then shared.
pub struct PciRoot<F = VirtioPciFunction> {
    /// Device numbers 1 and up; 0 is the host bridge.
    slots: [Option<Slot<F>>; layout::MAX_PCI_DEVICES],
    config_address: AtomicU32,
}

impl<F> Default for PciRoot<F> {
    fn default() -> Self {
        Self {
            slots: [const { None }; layout::MAX_PCI_DEVICES],
            config_address: AtomicU32::new(0),
        }
    }
}

impl<F: PciFunction> PciRoot<F> {
    /// A bus with the host bridge only.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `function` into the slot with device number `slot`, and assigns its BAR.
    pub fn attach(&mut self, slot: u8, mut function: F) -> Result<(), AttachError> {
        let index = usize::from(slot).wrapping_sub(1);
        let Some(place @ None) = self.slots.get_mut(index) else {
            return Err(AttachError::Taken(slot));
        };
        let size = function.bar_size();
        if size > layout::PCI_SLOT_WINDOW {
            return Err(AttachError::Window { size });
        }
        function.assign_bar(layout::PCI_WINDOW + index as u64 * layout::PCI_SLOT_WINDOW);
        *place = Some(Slot {
            bar: function.bar_address(),
            bar_size: size,
            function: Mutex::new(function),
        });
        Ok(())
    }

    /// Calls `action` on every function.
    pub fn for_each(&self, mut action: impl FnMut(&mut F)) {
        for slot in self.slots.iter().flatten() {
            action(&mut lock(slot));
        }
    }

    /// The state of every function, by its place on the bus; they are paused.
    pub fn save(&self) -> Result<BTreeMap<String, Saved>, SaveError> {
        let functions = self.functions();
        functions
            .map(|(place, function)| Ok((place, function.save()?)))
            .collect()
    }

    /// Takes over what [`PciRoot::save`] told of a bus with the same functions.
    pub fn restore(&self, saved: &BTreeMap<String, Saved>) -> Result<(), SnapshotError> {
        for (place, mut function) in self.functions() {
            restore_device(saved, &place, |saved| function.restore(saved))?;
        }
        Ok(())
    }

    fn functions(&self) -> impl Iterator<Item = (String, MutexGuard<'_, F>)> {
        let slots = (1..).zip(&self.slots);
        slots.filter_map(|(device, slot)| Some((format!("PCI {device}"), lock(slot.as_ref()?))))
    }

    /// The address that the guest has written to the configuration port.
    pub fn config_address(&self) -> u32 {
        self.config_address.load(Ordering::Acquire)
    }

    /// Sets it.
    pub fn set_config_address(&self, address: u32) {
        self.config_address.store(address, Ordering::Release);
    }

    fn config_read(&self, device: usize, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        if usize::from(offset) + data.len() > usize::from(CONFIG_SPACE_SIZE) {
            return;
        }
        match device.checked_sub(1) {
            None => host_bridge_read(offset, data),
            Some(index) => {
                if let Some(Some(slot)) = self.slots.get(index) {
                    lock(slot).config_read(offset, data);
                }
            }
        }
    }

    fn config_write(&self, device: usize, offset: u16, data: &[u8]) {
        if usize::from(offset) + data.len() > usize::from(CONFIG_SPACE_SIZE) {
            return;
        }
        if let Some(Some(slot)) = device
            .checked_sub(1)
            .and_then(|index| self.slots.get(index))
        {
            lock(slot).config_write(offset, data);
        }
    }

    fn find_bar(&self, address: u64, len: usize) -> Option<(&Slot<F>, u64)> {
        self.slots.iter().flatten().find_map(|slot| {
            let offset = address.checked_sub(slot.bar.get()?)?;
            let end = offset.checked_add(len as u64)?;
            (end <= slot.bar_size).then_some((slot, offset))
        })
    }
}

fn lock<F>(slot: &Slot<F>) -> MutexGuard<'_, F> {
    // A panic in a device aborts the process in release builds; in tests the state is still sound.
    slot.function.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Bytes of an access that lie within one dword, which is all that a function is asked for.
fn within_dword(offset: u16, len: usize) -> bool {
    matches!(len, 1 | 2 | 4) && usize::from(offset % 4) + len <= 4
}

/// Ports 0xCF8 (address) and 0xCFC (data).
pub struct ConfigPorts<F = VirtioPciFunction>(pub Arc<PciRoot<F>>);

impl<F> ConfigPorts<F> {
    const ENABLE: u32 = 1 << 31;
    const DATA: u64 = 4;

    /// Device and register offset that the address register selects.
    fn target(&self, port: u64) -> Option<(usize, u16)> {
        let address = self.0.config_address.load(Ordering::Acquire);
        let bus_and_function = address & 0x00ff_0700;
        if address & Self::ENABLE == 0 || bus_and_function != 0 {
            return None;
        }
        let device = (address >> 11) & 0x1f;
        let offset = (address & 0xfc) as u16 + (port - Self::DATA) as u16;
        Some((device as usize, offset))
    }
}

impl<F: PciFunction> BusDevice for ConfigPorts<F> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset >= Self::DATA {
            if let Some((device, register)) = self.target(offset)
                && within_dword(register, data.len())
            {
                self.0.config_read(device, register, data);
            }
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = self.0.config_address.load(Ordering::Acquire).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= Self::DATA {
            if let Some((device, register)) = self.target(offset)
                && within_dword(register, data.len())
            {
                self.0.config_write(device, register, data);
            }
        } else if let Ok(data) = <[u8; 4]>::try_from(data) {
            self.0
                .config_address
                .store(u32::from_le_bytes(data), Ordering::Release);
        }
    }
}

/// The memory-mapped configuration space of the bus.
pub struct Ecam<F = VirtioPciFunction>(pub Arc<PciRoot<F>>);

impl<F> Ecam<F> {
    fn target(offset: u64, len: usize) -> Option<(usize, u16)> {
        let function = (offset >> 12) & 0x7;
        let register = (offset & 0xfff) as u16;
        let device = usize::try_from(offset >> 15).ok()?;
        (function == 0 && within_dword(register, len)).then_some((device, register))
    }
}

impl<F: PciFunction> BusDevice for Ecam<F> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, register)) = Self::target(offset, data.len()) {
            self.0.config_read(device, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((device, register)) = Self::target(offset, data.len()) {
            self.0.config_write(device, register, data);
        }
    }
}

/// The memory window in which BARs are decoded.
pub struct Window<F = VirtioPciFunction>(pub Arc<PciRoot<F>>);

impl<F: PciFunction> BusDevice for Window<F> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((slot, register)) = self.0.find_bar(layout::PCI_WINDOW + offset, data.len()) {
            lock(slot).bar_read(register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((slot, register)) = self.0.find_bar(layout::PCI_WINDOW + offset, data.len()) {
            lock(slot).bar_write(register, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::state::{RestoreError, SaveError, Saved, State};
    use serde::{Deserialize, Serialize};

    use super::*;

    /// A function that shows its calls: config space is memory, the BAR returns its offset.
    struct Probe {
        config: Vec<u8>,
        bar: Arc<BarAddress>,
        bar_len: u64,
    }

    impl PciFunction for Probe {
        fn config_read(&mut self, offset: u16, data: &mut [u8]) {
            let start = usize::from(offset);
            data.copy_from_slice(&self.config[start..start + data.len()]);
        }
        fn config_write(&mut self, offset: u16, data: &[u8]) {
            let start = usize::from(offset);
            self.config[start..start + data.len()].copy_from_slice(data);
        }
        fn bar_size(&self) -> u64 {
            self.bar_len
        }
        fn assign_bar(&mut self, base: u64) {
            self.bar.set(Some(base));
        }
        fn bar_address(&self) -> Arc<BarAddress> {
            self.bar.clone()
        }
        fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
            assert!(offset + data.len() as u64 <= self.bar_size());
            data.fill(offset as u8);
        }
        fn bar_write(&mut self, offset: u64, data: &[u8]) {
            assert!(offset + data.len() as u64 <= self.bar_size());
        }
        fn pause(&mut self) {}
        fn resume(&mut self) {}
        fn save(&self) -> Result<Saved, SaveError> {
            Saved::new(&ProbeState(self.config.clone()))
        }
        fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
            let ProbeState(config) = saved.state()?;
            self.config = config;
            Ok(())
        }
        fn shutdown(&mut self) {}
    }

    #[derive(Serialize, Deserialize)]
    struct ProbeState(Vec<u8>);

    impl State for ProbeState {
        const KIND: &'static str = "probe";
        const VERSION: u32 = 1;
    }

    fn probe() -> Probe {
        Probe {
            config: vec![0x11; usize::from(CONFIG_SPACE_SIZE)],
            bar: Arc::default(),
            bar_len: 0x4000,
        }
    }

    fn bus() -> Arc<PciRoot<Probe>> {
        let mut root = PciRoot::new();
        root.attach(1, probe()).expect("slot 1");
        root.attach(2, probe()).expect("slot 2");
        Arc::new(root)
    }

    fn port_read(ports: &ConfigPorts<Probe>, address: u32, port: u64) -> [u8; 4] {
        ports.write(0, &address.to_le_bytes());
        let mut data = [0; 4];
        ports.read(4 + port, &mut data);
        data
    }

    #[test]
    fn ports_and_ecam_reach_the_same_registers() {
        let root = bus();
        let ports = ConfigPorts(root.clone());
        let ecam = Ecam(root);
        assert_eq!(port_read(&ports, 0x8000_0000, 0), [0x36, 0x1b, 0x08, 0x00]);
        ecam.write((2 << 15) | 0x40, &[0xaa, 0xbb]);
        assert_eq!(port_read(&ports, 0x8000_1040, 0), [0xaa, 0xbb, 0x11, 0x11]);
        assert_eq!(port_read(&ports, 0x8000_1840, 0), [0xff; 4], "empty slot");
        assert_eq!(port_read(&ports, 0x8000_0900, 0), [0xff; 4], "function 1");
        assert_eq!(port_read(&ports, 0x8001_0800, 0), [0xff; 4], "bus 1");
        assert_eq!(port_read(&ports, 0x0000_0800, 0), [0xff; 4], "disabled");
        let mut data = [0; 4];
        ecam.read((1 << 15) | 0xffe, &mut data);
        assert_eq!(data, [0xff; 4], "crosses a dword");
    }

    #[test]
    fn window_finds_bars_that_are_decoded() {
        let root = bus();
        let window = Window(root.clone());
        let mut data = [0; 4];
        window.read(0x8000 + 0x24, &mut data);
        assert_eq!(data, [0x24; 4]);
        window.read(0xbffe, &mut data);
        assert_eq!(data, [0xff; 4], "crosses the end of the BAR");
        window.read(0x4000, &mut data);
        assert_eq!(data, [0xff; 4], "nobody there");
        let slot = root.slots[1].as_ref().expect("slot 2");
        slot.bar.set(None);
        window.read(0x8000, &mut data);
        assert_eq!(data, [0xff; 4], "decoding off");
    }

    #[test]
    fn each_of_the_31_slots_is_taken_once() {
        let mut root = PciRoot::new();
        for slot in 1..=31 {
            root.attach(slot, probe()).expect("a free slot");
        }
        for slot in [0, 1, 31, 32, u8::MAX] {
            let error = root.attach(slot, probe());
            assert!(matches!(error, Err(AttachError::Taken(taken)) if taken == slot));
        }
    }

    #[test]
    fn a_bar_larger_than_its_part_of_the_window_is_refused() {
        let mut large = probe();
        large.bar_len = layout::PCI_SLOT_WINDOW * 2;
        let error = PciRoot::new().attach(1, large);
        assert!(matches!(error, Err(AttachError::Window { .. })));
    }
}
