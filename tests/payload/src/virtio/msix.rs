//! MSI-X tables.

use super::pci::{Region, Transport};
use crate::pci::Pci;
use crate::phys;

const CAP_MSIX: u8 = 0x11;
const ENABLE: u32 = 1 << 15;
const FUNCTION_MASK: u32 = 1 << 14;

/// The MSI-X capability of a function.
#[derive(Clone, Copy)]
pub struct Msix {
    capability: u16,
    /// The table.
    pub table: Region,
    /// The pending bits.
    pub pending: Region,
    /// Vectors.
    pub vectors: u16,
}

impl Msix {
    /// Finds the capability.
    pub fn find(pci: &Pci, transport: &Transport) -> Option<Self> {
        let function = transport.function;
        let (_, cap) = pci.capabilities(function).find(|(id, _)| *id == CAP_MSIX)?;
        let vectors = (pci.read(function, cap + 2, 2) & 0x7ff) as u16 + 1;
        let region = |offset: u16, len: u64| {
            let place = pci.read(function, cap + offset, 4);
            let bar = transport.bars.get((place & 7) as usize)?;
            Some(Region {
                addr: bar.addr + u64::from(place & !7),
                len,
            })
        };
        Some(Self {
            capability: cap,
            table: region(4, 16 * u64::from(vectors))?,
            pending: region(8, u64::from(vectors).div_ceil(64) * 8)?,
            vectors,
        })
    }

    /// Turns MSI-X on or off for the function.
    pub fn enable(&self, pci: &Pci, transport: &Transport, on: bool) {
        let offset = self.capability + 2;
        let control = pci.read(transport.function, offset, 2) & !(ENABLE | FUNCTION_MASK);
        pci.write(
            transport.function,
            offset,
            2,
            control | if on { ENABLE } else { 0 },
        );
    }

    /// Points an entry at a CPU and vector, unmasked.
    pub fn set(&self, entry: u16, apic_id: u32, vector: u8) {
        let at = self.table.addr + 16 * u64::from(entry);
        phys::w32(at, 0xfee0_0000 | apic_id << 12);
        phys::w32(at + 4, 0);
        phys::w32(at + 8, vector.into());
        phys::w32(at + 12, 0);
    }
}
