//! The MSI capability as a guest sees it (PCI 3.0, 6.8.1). Its messages are kept as entries of an MSI-X table, so that both
//! kinds are connected in one way.

use super::MAX_VECTORS;
use super::shape::MsiShape;
use crate::pci::msix;

const ENABLE: u16 = 1;
const ENABLED_SHIFT: u32 = 4;
const CAPABLE_SHIFT: u32 = 1;
const LOG_MASK: u16 = 0b111;
const WIDE: u16 = 1 << 7;
const MASKABLE: u16 = 1 << 8;
/// Enable, and how many.
const WRITABLE: u16 = ENABLE | LOG_MASK << ENABLED_SHIFT;
/// 32 messages.
const MAX_LOG: u16 = 5;
const _: () = assert!(MAX_VECTORS >= 1 << MAX_LOG);

/// The registers.
pub(super) struct Msi {
    offset: u16,
    control: u16,
    address: u64,
    data: u16,
    mask: u32,
}

impl Msi {
    pub(super) fn new(shape: MsiShape) -> Self {
        let capable = (shape.control >> CAPABLE_SHIFT & LOG_MASK).min(MAX_LOG);
        Self {
            offset: shape.offset,
            control: shape.control & (WIDE | MASKABLE) | capable << CAPABLE_SHIFT,
            address: 0,
            data: 0,
            mask: 0,
        }
    }

    /// Messages that it has at most.
    pub(super) fn vectors(&self) -> u16 {
        1 << (self.control >> CAPABLE_SHIFT & LOG_MASK)
    }

    /// Messages that the guest has enabled; none: it does not use them.
    pub(super) fn enabled(&self) -> Option<u16> {
        let vectors = 1 << (self.control >> ENABLED_SHIFT & LOG_MASK).min(MAX_LOG);
        (self.control & ENABLE != 0).then(|| self.vectors().min(vectors))
    }

    /// The table's entry for message number `index`, of as many as are enabled.
    pub(super) fn entry(&self, index: u16) -> [u8; msix::ENTRY] {
        let low_bits = self.enabled().unwrap_or(1) - 1;
        let data = self.data & !low_bits | index & low_bits;
        let is_masked = self.control & MASKABLE != 0 && self.mask >> index & 1 != 0;
        let mut entry = [0; msix::ENTRY];
        entry[..8].copy_from_slice(&self.address.to_le_bytes());
        entry[8..12].copy_from_slice(&u32::from(data).to_le_bytes());
        entry[12] = is_masked.into();
        entry
    }

    /// Offset of a register in the capability.
    fn data_offset(&self) -> u16 {
        match self.control & WIDE != 0 {
            true => 12,
            false => 8,
        }
    }

    fn len(&self) -> u16 {
        let data = self.data_offset();
        match self.control & MASKABLE != 0 {
            true => data + 12,
            // The data register, and what is reserved behind it.
            false => data + 4,
        }
    }

    /// Whether the dword at `offset` of configuration space has registers of it.
    pub(super) fn has(&self, offset: u16) -> bool {
        (self.offset..self.offset + self.len()).contains(&offset)
    }

    /// The dword at `offset`, where the device has `value`.
    pub(super) fn read(&self, offset: u16, value: u32) -> u32 {
        let data = self.data_offset();
        match offset - self.offset {
            0 => value & 0xffff | u32::from(self.control) << 16,
            4 => self.address as u32,
            at if at == data => self.data.into(),
            8 => (self.address >> 32) as u32,
            at if at == data + 4 => self.mask,
            // Nothing is seen pending: what is masked waits in its event.
            _ => 0,
        }
    }

    /// Writes the bits `bits` of the dword at `offset`.
    pub(super) fn write(&mut self, offset: u16, value: u32, bits: u32) {
        let data = self.data_offset();
        let merge = |old: u32| old & !bits | value & bits;
        match offset - self.offset {
            0 => {
                let new = (merge(u32::from(self.control) << 16) >> 16) as u16;
                self.control = self.control & !WRITABLE | new & WRITABLE;
            }
            4 => {
                let low = merge(self.address as u32) & !3;
                self.address = self.address >> 32 << 32 | u64::from(low);
            }
            at if at == data => self.data = merge(self.data.into()) as u16,
            8 => {
                let high = merge((self.address >> 32) as u32);
                self.address = self.address & 0xffff_ffff | u64::from(high) << 32;
            }
            at if at == data + 4 => self.mask = merge(self.mask),
            _ => {}
        }
    }
}
