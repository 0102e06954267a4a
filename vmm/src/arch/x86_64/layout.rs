//! The guest physical address map. Everything here is fixed; only RAM's size varies.
//!
//! ```text
//! 0x0000_0000  RAM: boot structures, command line, kernel at 1 MiB
//! 0xC000_0000  PCI memory window (BARs)
//! 0xE000_0000  PCI configuration space (ECAM, one bus)
//! 0xFEC0_0000  I/O APIC
//! 0xFEE0_0000  local APICs
//! 0xFFFB_D000  KVM's TSS
//! 0x1_0000_0000  RAM above the hole
//! ```

use devices::legacy::x86_64::{cmos, pvpanic};
use devices::legacy::{power, serial};

use crate::pci;

/// Memory below the legacy video hole that the map calls usable, bytes.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables: the area that old software scans for the RSDP.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// SMBIOS entry point and tables: the area that software scans for them.
pub const SMBIOS: u64 = 0xf_0000;
/// The generation ID, 16 bytes on a page of their own in the ACPI area.
pub const GENERATION_ID: u64 = 0xf_f000;
/// Where a processor begins in real mode, 16 bytes: `F000:FFF0`.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// End of the ACPI area and of the first mebibyte.
pub const HIGH_RAM: u64 = 0x10_0000;
/// Where RAM makes room for devices.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where RAM goes on.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// PCI memory window.
pub const PCI_WINDOW: u64 = HOLE_START;
/// Its size in bytes.
pub const PCI_WINDOW_SIZE: u64 = 0x2000_0000;
/// Each slot's part of it, bytes, in the order of device numbers: a device's address does not depend on
/// what others there are.
pub const PCI_SLOT_WINDOW: u64 = 0x8000;
/// PCI Express configuration space of the one bus.
pub const ECAM: u64 = 0xe000_0000;
/// 32 devices of 8 functions of 4 KiB.
pub const ECAM_SIZE: u64 = 32 * 8 * 4096;
/// I/O APIC registers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages for Intel's real-mode TSS; the guest never sees them.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// Global descriptor table of the boot state.
pub const BOOT_GDT: u64 = 0x500;
/// PVH start info, module list and memory map.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH module list.
pub const PVH_MODULES: u64 = 0x6040;
/// PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x6100;
/// Linux boot parameters ("zero page").
pub const ZERO_PAGE: u64 = 0x7000;
/// Boot stack pointer of the 64-bit protocol.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Boot page tables: one PML4, one PDPT and one page directory per GiB below 4 GiB.
pub const BOOT_PML4: u64 = 0x9000;
/// Boot page directory pointers.
pub const BOOT_PDPT: u64 = 0xa000;
/// First boot page directory; four in a row.
pub const BOOT_PD: u64 = 0xb000;
/// Kernel command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Room for it; Linux on x86 takes 2048 bytes, other kernels may take more.
pub const COMMAND_LINE_MAX: usize = 0x1_0000;

/// PCI configuration address and data ports (PCI 3.0, 3.2.2.3.2).
pub const PCI_CONFIG_PORTS: u64 = 0xcf8;
/// Number of ports.
pub const PCI_CONFIG_PORTS_LEN: u64 = 8;
/// Power control registers.
pub const POWER_PORTS: u16 = 0x600;
/// Registers of PCI slots whose devices come and go.
pub const HOTPLUG_PORTS: u16 = 0x700;

/// GSI of COM1, its traditional ISA line.
pub const GSI_SERIAL: u32 = 4;
/// GSI of the generic event device (power button).
pub const GSI_EVENTS: u32 = 5;
/// I/O APIC pins; MSI routes use the GSIs above.
pub const IO_APIC_PINS: u32 = 24;

/// Smallest guest RAM, bytes.
pub const MIN_RAM: u64 = 4 << 20;
/// Largest guest RAM, bytes.
pub const MAX_RAM: u64 = 1 << 40;
/// Most vCPUs.
pub const MAX_VCPUS: u32 = 64;
/// Most PCI devices beside the host bridge.
pub const MAX_PCI_DEVICES: usize = 31;

const _: () = {
    assert!(ACPI_TABLES < SMBIOS && SMBIOS < GENERATION_ID && SMBIOS.is_multiple_of(16));
    assert!(GENERATION_ID + 16 <= RESET_VECTOR && RESET_VECTOR + 16 == HIGH_RAM);
    assert!(PCI_WINDOW + PCI_WINDOW_SIZE <= ECAM);
    assert!(MAX_PCI_DEVICES as u64 * PCI_SLOT_WINDOW <= PCI_WINDOW_SIZE);
    assert!(ECAM + ECAM_SIZE <= IO_APIC as u64);
    assert!(BOOT_PD + 4 * 4096 <= COMMAND_LINE);
    assert!(COMMAND_LINE + COMMAND_LINE_MAX as u64 <= LOW_RAM_END);
    assert!(PVH_MODULES + 32 <= PVH_MEMORY_MAP);
    assert!(PVH_MEMORY_MAP + 24 * 16 <= ZERO_PAGE);
    assert!(ZERO_PAGE + 4096 <= BOOT_STACK + 16);
    assert!(GSI_SERIAL < IO_APIC_PINS && GSI_EVENTS < IO_APIC_PINS);
    assert!(MIN_RAM < HOLE_START);
    assert!(POWER_PORTS as u64 + power::LEN <= HOTPLUG_PORTS as u64);
    assert!(HOTPLUG_PORTS as u64 + pci::HOTPLUG_LEN < PCI_CONFIG_PORTS);
    assert!((serial::PORT as u64) < POWER_PORTS as u64 && pvpanic::PORT < POWER_PORTS);
    assert!(cmos::PORT < serial::PORT as u64);
};

/// RAM of `bytes` split around the hole: (below, above).
pub fn split_ram(bytes: u64) -> (u64, u64) {
    let below = bytes.min(HOLE_START);
    (below, bytes - below)
}

/// RAM of `bytes`: (start, length), ascending.
pub fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    let (below, above) = split_ram(bytes);
    let ranges = [(0, below), (HOLE_END, above)];
    ranges.into_iter().filter(|(_, len)| *len > 0).collect()
}

/// What a range of the memory map is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Usable RAM.
    Ram,
    /// Not usable.
    Reserved,
}

/// The map handed to the guest kernel for RAM of `bytes`: (start, length, kind), ascending.
pub fn memory_map(bytes: u64) -> Vec<(u64, u64, RangeKind)> {
    let (below, above) = split_ram(bytes);
    let mut map = vec![
        (0, LOW_RAM_END, RangeKind::Ram),
        (LOW_RAM_END, HIGH_RAM - LOW_RAM_END, RangeKind::Reserved),
        (HIGH_RAM, below - HIGH_RAM, RangeKind::Ram),
        (ECAM, ECAM_SIZE, RangeKind::Reserved),
    ];
    if above > 0 {
        map.push((HOLE_END, above, RangeKind::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_at_the_hole() {
        assert_eq!(split_ram(64 << 20), (64 << 20, 0));
        assert_eq!(split_ram(3 << 30), (3 << 30, 0));
        assert_eq!(split_ram(5 << 30), (3 << 30, 2 << 30));
        assert_eq!(ram_ranges(64 << 20), [(0, 64 << 20)]);
        assert_eq!(ram_ranges(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }

    #[test]
    fn map_ascends_and_holds_all_ram_but_the_legacy_area() {
        for bytes in [MIN_RAM, 3 << 30, (3 << 30) + 4096, 5 << 30, MAX_RAM] {
            let map = memory_map(bytes);
            for pair in map.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0);
            }
            let usable: u64 = map
                .iter()
                .filter(|range| range.2 == RangeKind::Ram)
                .map(|range| range.1)
                .sum();
            assert_eq!(usable, bytes - (HIGH_RAM - LOW_RAM_END));
        }
    }
}
