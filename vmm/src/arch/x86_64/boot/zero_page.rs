//! The zero page of Linux's 64-bit boot protocol (Linux `Documentation/arch/x86/zero-page.rst`).

use devices::GuestMemory;
use linux_loader::loader::KernelLoaderResult;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress};

use super::super::layout::{self, RangeKind};
use super::BootError;
use super::initrd::Initrd;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Writes the zero page.
pub(super) fn write(
    memory: &GuestMemory,
    ram_bytes: u64,
    initrd: Option<Initrd>,
    rsdp: u64,
    kernel: &KernelLoaderResult,
    cmdline_len: usize,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: kernel.setup_header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            kernel_alignment: 0x100_0000,
            ..Default::default()
        }),
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    params.hdr.cmdline_size = u32::try_from(cmdline_len).unwrap_or(u32::MAX);
    if let Some(Initrd { address, len }) = initrd {
        // Both are below the hole at 3 GiB.
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = len as u32;
    }
    let map = layout::memory_map(ram_bytes);
    for (slot, (addr, size, kind)) in params.e820_table.iter_mut().zip(&map) {
        let r#type = match kind {
            RangeKind::Ram => E820_RAM,
            RangeKind::Reserved => E820_RESERVED,
        };
        *slot = boot_e820_entry {
            addr: *addr,
            size: *size,
            r#type,
        };
    }
    params.e820_entries = u8::try_from(map.len()).unwrap_or(0);
    memory
        .write_obj(params, GuestAddress(layout::ZERO_PAGE))
        .map_err(BootError::write("zero page"))
}

#[cfg(test)]
pub(super) fn read_zero_page(memory: &GuestMemory) -> boot_params {
    memory
        .read_obj(GuestAddress(layout::ZERO_PAGE))
        .expect("zero page")
}
