//! The guest physical address map, where firmware for QEMU's `virt` machine expects what it needs.
//!
//! ```text
//! 0x0800_0000  interrupt controller
//! 0x0900_0000  serial port
//! 0x0903_0000  power control
//! 0x1000_0000  PCI memory window (BARs)
//! 0x3F00_0000  PCI configuration space (ECAM, one bus)
//! 0x4000_0000  RAM
//! ```

/// Serial port, a 16550 with one byte a register.
pub const SERIAL: u64 = 0x0900_0000;
/// Power control registers.
pub const POWER: u64 = 0x0903_0000;
/// Registers of PCI slots whose devices come and go.
pub const HOTPLUG: u64 = 0x0904_0000;
/// PCI memory window.
pub const PCI_WINDOW: u64 = 0x1000_0000;
/// Its size in bytes.
pub const PCI_WINDOW_SIZE: u64 = 0x2f00_0000;
/// Each slot's part of it, bytes, in the order of device numbers: a device's address does not depend on
/// what others there are.
pub const PCI_SLOT_WINDOW: u64 = 0x8000;
/// PCI Express configuration space of the one bus.
pub const ECAM: u64 = 0x3f00_0000;
/// 32 devices of 8 functions of 4 KiB.
pub const ECAM_SIZE: u64 = 32 * 8 * 4096;
/// Where RAM begins.
pub const RAM: u64 = 0x4000_0000;

/// Shared peripheral interrupts that are lines.
pub const SHARED_INTERRUPTS: u32 = 32;
/// GSI of the serial port.
pub const GSI_SERIAL: u32 = 1;
/// GSI of the power button.
pub const GSI_EVENTS: u32 = 2;

/// Smallest guest RAM, bytes.
pub const MIN_RAM: u64 = 4 << 20;
/// Largest guest RAM, bytes.
pub const MAX_RAM: u64 = 1 << 40;
/// Most vCPUs.
pub const MAX_VCPUS: u32 = 64;
/// Most PCI devices beside the host bridge.
pub const MAX_PCI_DEVICES: usize = 31;

const _: () = {
    assert!(POWER < HOTPLUG && HOTPLUG < PCI_WINDOW);
    assert!(PCI_SLOT_WINDOW * MAX_PCI_DEVICES as u64 <= PCI_WINDOW_SIZE);
    assert!(PCI_WINDOW + PCI_WINDOW_SIZE <= ECAM);
    assert!(ECAM + ECAM_SIZE <= RAM);
    assert!(GSI_SERIAL < SHARED_INTERRUPTS && GSI_EVENTS < SHARED_INTERRUPTS);
};

/// RAM of `bytes`: (start, length), ascending.
pub fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    vec![(RAM, bytes)]
}
