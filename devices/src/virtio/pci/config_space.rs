//! PCI configuration space: a type 0 header, and the capabilities that point into the BAR
//! (PCI 3.0, 6.1; virtio 1.2, 4.1.4).

use crate::state::RestoreError;
use crate::state::transport::{ConfigSpaceState, FunctionState};
use crate::virtio::DeviceInfo;
use crate::virtio::pci::layout;

const SIZE: usize = 256;

const VENDOR: u16 = 0x1af4;
/// Device id of a modern device less its virtio type.
const MODERN_DEVICE: u16 = 0x1040;
/// Any id from 0x40 says "not transitional"; this one is common.
const SUBSYSTEM: u16 = 0x1100;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_MASTER: u8 = 1 << 2;
/// Memory, bus master, parity response, SERR, INTx disable.
const COMMAND_WRITABLE: u16 = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 8 | 1 << 10;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const REVISION: usize = 0x08;
const CACHE_LINE: usize = 0x0c;
const BAR: usize = 0x10;
/// Memory, 64 bits wide, not prefetchable.
const BAR_TYPE: u8 = 0b100;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM_DEVICE: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

const MSIX: usize = 0x40;
const MSIX_CONTROL: usize = MSIX + 2;
const MSIX_LEN: usize = 12;
const COMMON: usize = MSIX + MSIX_LEN;
const ISR: usize = COMMON + 16;
const DEVICE: usize = ISR + 16;
const NOTIFY: usize = DEVICE + 16;
const PCI_CFG: usize = NOTIFY + 20;
const PCI_CFG_DATA: usize = PCI_CFG + 16;
const _: () = assert!(PCI_CFG + 20 <= SIZE && BAR + 8 <= SIZE);

const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;

/// `cfg_type` of the virtio capabilities (4.1.4).
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI: u8 = 5;

/// What a write touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    /// The BAR or the command register: decoding or bus mastering may have changed.
    pub(super) decoding: bool,
    /// MSI-X message control.
    pub(super) msix: bool,
    /// The data of the PCI configuration access capability.
    pub(super) window: bool,
}

/// The access that the PCI configuration access capability describes (4.1.4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) offset: u64,
    pub(super) len: usize,
}

/// The registers, and which of their bits the guest may write.
pub(super) struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// The driver has taken bus mastering away.
    silenced: bool,
}

impl ConfigSpace {
    /// The registers of a `device` with `vectors` MSI-X vectors.
    pub(super) fn new(device: &DeviceInfo, vectors: u16) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            silenced: false,
        };
        space.header(device);
        space.msix(vectors);
        let page = layout::PAGE;
        space.capability(COMMON, ISR, 16, TYPE_COMMON, layout::COMMON, page);
        space.capability(ISR, DEVICE, 16, TYPE_ISR, layout::ISR, page);
        space.capability(DEVICE, NOTIFY, 16, TYPE_DEVICE, layout::DEVICE, page);
        space.capability(NOTIFY, PCI_CFG, 20, TYPE_NOTIFY, layout::NOTIFY, page);
        space.put(NOTIFY + 16, &layout::NOTIFY_MULTIPLIER.to_le_bytes());
        space.capability(PCI_CFG, 0, 20, TYPE_PCI, 0, 0);
        space.allow(PCI_CFG + 4, &[0xff]);
        space.allow(PCI_CFG + 8, &[0xff; 12]);
        space
    }

    fn header(&mut self, device: &DeviceInfo) {
        self.put(0, &VENDOR.to_le_bytes());
        self.put(2, &(MODERN_DEVICE + device.virtio_type).to_le_bytes());
        self.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.put(REVISION, &(device.pci_class << 8 | 1).to_le_bytes());
        self.allow(CACHE_LINE, &[0xff]);
        self.put(BAR, &[BAR_TYPE]);
        self.allow(BAR, &(!(layout::BAR_SIZE - 1)).to_le_bytes());
        self.put(SUBSYSTEM_VENDOR, &VENDOR.to_le_bytes());
        self.put(SUBSYSTEM_DEVICE, &SUBSYSTEM.to_le_bytes());
        self.put(CAPABILITIES, &[MSIX as u8]);
        self.allow(INTERRUPT_LINE, &[0xff]);
    }

    fn msix(&mut self, vectors: u16) {
        self.put(MSIX, &[CAP_MSIX, COMMON as u8]);
        self.put(MSIX_CONTROL, &(vectors - 1).to_le_bytes());
        // Enable and function mask.
        self.allow(MSIX_CONTROL, &0xc000u16.to_le_bytes());
        // The low three bits name the BAR, which is number 0.
        self.put(MSIX + 4, &layout::MSIX_TABLE.to_le_bytes());
        self.put(MSIX + 8, &layout::MSIX_PBA.to_le_bytes());
    }

    fn capability(&mut self, at: usize, next: usize, len: u8, kind: u8, offset: u32, size: u32) {
        self.put(at, &[CAP_VENDOR, next as u8, len, kind]);
        self.put(at + 8, &offset.to_le_bytes());
        self.put(at + 12, &size.to_le_bytes());
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| self.bytes[at + i])
    }

    /// Fills `data`; there is nothing past the first 256 bytes.
    pub(super) fn read(&self, offset: u16, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(usize::from(offset)..) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Changes the writable bits, and says what else is to be done.
    pub(super) fn write(&mut self, offset: u16, data: &[u8]) -> Touched {
        let mut touched = Touched::default();
        for (&byte, at) in data.iter().zip(usize::from(offset)..) {
            let Some(mask) = self.writable.get(at) else {
                return touched;
            };
            let old = self.bytes[at];
            self.bytes[at] = old & !mask | byte & mask;
            if at == COMMAND && (old ^ self.bytes[at]) & COMMAND_MASTER != 0 {
                self.silenced = old & COMMAND_MASTER != 0;
            }
            match at {
                COMMAND | BAR..=0x17 => touched.decoding = true,
                _ if at & !1 == MSIX_CONTROL => touched.msix = true,
                _ if at & !3 == PCI_CFG_DATA => touched.window = true,
                _ => {}
            }
        }
        touched
    }

    /// What a snapshot keeps.
    pub(super) fn save(&self) -> ConfigSpaceState {
        ConfigSpaceState {
            bytes: self.bytes.to_vec(),
            silenced: self.silenced,
        }
    }

    /// Takes over the saved registers of a function that differs in none that the guest cannot write.
    pub(super) fn restore(&mut self, saved: &ConfigSpaceState) -> Result<(), RestoreError> {
        let unfit = |what: String| Err(RestoreError::unfit::<FunctionState>(what));
        let Ok(bytes) = <[u8; SIZE]>::try_from(&*saved.bytes) else {
            return unfit(format!(
                "configuration space of {} bytes",
                saved.bytes.len()
            ));
        };
        let differs = |at: &usize| (bytes[*at] ^ self.bytes[*at]) & !self.writable[*at] != 0;
        // The window's data are what a read left there.
        let fixed = (0..SIZE).filter(|at| at & !3 != PCI_CFG_DATA);
        if let Some(at) = fixed.into_iter().find(differs) {
            return unfit(format!(
                "another device (byte {at:#x} of configuration space)"
            ));
        }
        self.bytes = bytes;
        self.silenced = saved.silenced && bytes[COMMAND] & COMMAND_MASTER == 0;
        Ok(())
    }

    /// Sets the BAR's address.
    pub(super) fn set_bar(&mut self, base: u64) {
        let address = base & !(layout::BAR_SIZE - 1);
        self.put(BAR, &(address | u64::from(BAR_TYPE)).to_le_bytes());
    }

    /// Where the BAR is decoded: nowhere while the command register says so or the address is not
    /// usable (zero, or the pattern that sizing leaves).
    pub(super) fn decoded(&self) -> Option<u64> {
        let base = u64::from_le_bytes(self.get(BAR)) & !(layout::BAR_SIZE - 1);
        let on = self.bytes[COMMAND] & COMMAND_MEMORY != 0;
        let usable = base != 0 && base.checked_add(layout::BAR_SIZE).is_some();
        (on && usable).then_some(base)
    }

    /// Whether the device may access memory (PCI 3.0, 6.2.2). Some drivers never allow it and expect it
    /// all the same, so only one that takes it away means it.
    pub(super) fn may_access_memory(&self) -> bool {
        !self.silenced
    }

    /// MSI-X message control.
    pub(super) fn msix_control(&self) -> u16 {
        u16::from_le_bytes(self.get(MSIX_CONTROL))
    }

    /// Whether a read at `offset` wants the access window's data.
    pub(super) fn is_window(offset: u16) -> bool {
        usize::from(offset) & !3 == PCI_CFG_DATA
    }

    /// The access that the window describes, if the driver may make it.
    pub(super) fn window(&self) -> Option<Window> {
        let bar = self.bytes[PCI_CFG + 4];
        let offset = u64::from(u32::from_le_bytes(self.get(PCI_CFG + 8)));
        let len = u32::from_le_bytes(self.get(PCI_CFG + 12));
        let fits = offset + u64::from(len) <= layout::BAR_SIZE;
        let aligned = matches!(len, 1 | 2 | 4) && offset % u64::from(len) == 0;
        (bar == 0 && fits && aligned).then_some(Window {
            offset,
            len: len as usize,
        })
    }

    /// The window's data.
    pub(super) fn window_data(&self) -> [u8; 4] {
        self.get(PCI_CFG_DATA)
    }

    /// Sets the window's data.
    pub(super) fn set_window_data(&mut self, data: [u8; 4]) {
        self.put(PCI_CFG_DATA, &data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::{balloon, block, console, net, rng, vsock};

    /// What drivers of machine version 1 find beside ids and classes: the BAR and the capabilities, each with its
    /// place in the BAR.
    const SAME: [(usize, u32); 18] = [
        (0x04, 0x0010_0000),
        (0x10, 0x4),
        (0x2c, 0x1100_1af4),
        (0x34, 0x40),
        (0x44, 0x4000),
        (0x48, 0x5000),
        (0x4c, 0x0110_5c09),
        (0x58, 0x1000),
        (0x5c, 0x0310_6c09),
        (0x64, 0x1000),
        (0x68, 0x1000),
        (0x6c, 0x0410_7c09),
        (0x74, 0x2000),
        (0x78, 0x1000),
        (0x7c, 0x0214_9009),
        (0x84, 0x3000),
        (0x88, 0x1000),
        (0x8c, 0x4),
    ];

    /// A release that changes this adds a version.
    #[test]
    fn machine_version_1_keeps_its_functions() {
        for (info, vectors, id, class) in [
            (&block::INFO, 2, 0x1042_1af4, 0x0180_0001),
            (&net::INFO, 3, 0x1041_1af4, 0x0200_0001),
            (&rng::INFO, 2, 0x1044_1af4, 0x00ff_0001),
            (&balloon::INFO, 5, 0x1045_1af4, 0x00ff_0001),
            (&console::INFO, 5, 0x1043_1af4, 0x0780_0001),
            (&vsock::INFO, 4, 0x1053_1af4, 0x0780_0001),
        ] {
            let space = ConfigSpace::new(info, vectors);
            let words = space.bytes.chunks_exact(4);
            let words = words.map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")));
            let words = (0_usize..).step_by(4).zip(words);
            let found: Vec<_> = words.filter(|(_, word)| *word != 0).collect();
            let table = u32::from(vectors - 1) << 16 | 0x4c11;
            let mut wanted = SAME.to_vec();
            wanted.extend([(0, id), (8, class), (0x40, table), (0x90, 0x0514_0009)]);
            wanted.sort_unstable();
            assert_eq!(found, wanted, "type {}", info.virtio_type);
        }
    }
}
