//! How a guest reaches the bus: configuration ports, ECAM and the memory window.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use devices::bus::BusDevice;
use devices::pci::PciFunction;

use super::{Function, PciRoot};

/// Bytes of an access that lie within one dword, which is all that a function is asked for.
fn within_dword(offset: u16, len: usize) -> bool {
    matches!(len, 1 | 2 | 4) && usize::from(offset % 4) + len <= 4
}

/// Ports 0xCF8 (address) and 0xCFC (data).
pub struct ConfigPorts<F = Function>(pub Arc<PciRoot<F>>);

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
pub struct Ecam<F = Function>(pub Arc<PciRoot<F>>);

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

/// A memory window in which BARs are decoded.
pub struct Window<F = Function> {
    /// The bus.
    pub root: Arc<PciRoot<F>>,
    /// Where it begins.
    pub base: u64,
}

impl<F: PciFunction> BusDevice for Window<F> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let (address, len) = (self.base + offset, data.len());
        self.root.at_bar(address, len, |function, bar, register| {
            function.bar_read(bar, register, data);
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let address = self.base + offset;
        let len = data.len();
        self.root.at_bar(address, len, |function, bar, register| {
            function.bar_write(bar, register, data);
        });
    }
}
