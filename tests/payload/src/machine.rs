//! What the payload knows about the machine it runs on.

use crate::acpi::Acpi;
use crate::cmdline::Cmdline;
use crate::memmap::{self, MemoryMap};
use crate::{phys, power, time};

const START_INFO_MAGIC: u32 = 0x336e_c578;

/// The machine, as the VMM described it.
pub struct Machine {
    /// The command line.
    pub cmdline: Cmdline,
    /// RAM.
    pub memory: MemoryMap,
    /// ACPI tables; empty where there are none.
    pub acpi: Acpi,
}

impl Machine {
    /// Reads `hvm_start_info` and what it points to.
    pub fn discover(start_info: u64) -> Self {
        assert_eq!(
            phys::r32u(start_info),
            START_INFO_MAGIC,
            "no hvm_start_info"
        );
        let cmdline = Cmdline::read(phys::r64(start_info + 24));
        let memory = match phys::r32u(start_info + 4) {
            0 => MemoryMap::read(0, 0),
            _ => MemoryMap::read(phys::r64(start_info + 40), phys::r32u(start_info + 48)),
        };
        memmap::init_arena(&memory);
        let acpi = Acpi::discover(phys::r64(start_info + 32));
        power::init(&acpi, &cmdline);
        time::init(&cmdline);
        Self {
            cmdline,
            memory,
            acpi,
        }
    }
}
