//! The PVH start info (Xen `xen/include/public/arch-x86/hvm/start_info.h`, version 1).

use devices::GuestMemory;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress};

use super::super::layout::{self, RangeKind};
use super::BootError;
use super::initrd::Initrd;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const MEMORY_RAM: u32 = 1;
const MEMORY_RESERVED: u32 = 2;

/// Writes start info, memory map and module list.
pub(super) fn write(
    memory: &GuestMemory,
    ram_bytes: u64,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<(), BootError> {
    let map = layout::memory_map(ram_bytes);
    let mut address = layout::PVH_MEMORY_MAP;
    for (addr, size, kind) in &map {
        let type_ = match kind {
            RangeKind::Ram => MEMORY_RAM,
            RangeKind::Reserved => MEMORY_RESERVED,
        };
        let entry = hvm_memmap_table_entry {
            addr: *addr,
            size: *size,
            type_,
            reserved: 0,
        };
        memory
            .write_obj(entry, GuestAddress(address))
            .map_err(BootError::write("PVH memory map"))?;
        address += size_of::<hvm_memmap_table_entry>() as u64;
    }
    if let Some(Initrd { address, len }) = initrd {
        let module = hvm_modlist_entry {
            paddr: address,
            size: len,
            ..Default::default()
        };
        memory
            .write_obj(module, GuestAddress(layout::PVH_MODULES))
            .map_err(BootError::write("PVH module list"))?;
    }
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: initrd.map_or(0, |_| layout::PVH_MODULES),
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    memory
        .write_obj(start_info, GuestAddress(layout::PVH_START_INFO))
        .map_err(BootError::write("PVH start info"))
}
