//! The kernel image: where it goes, and what it says that it takes.

use std::fs::File;

use devices::GuestMemory;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use vm_memory::GuestAddress;

use super::super::layout;
use super::check::Format;
use super::{BootError, CheckedKernel};

/// Highest initrd address for kernels that do not name one.
const INITRD_ADDR_MAX: u64 = 0xffff_ffff;
/// Longest command line of a kernel that does not name one (x86 `COMMAND_LINE_SIZE` less the NUL).
const ELF_COMMAND_LINE_MAX: usize = 2047;

/// Loads the file in which `checked` is.
pub(super) fn load(
    memory: &GuestMemory,
    file: &mut File,
    checked: CheckedKernel,
) -> Result<KernelLoaderResult, BootError> {
    let high_ram = Some(GuestAddress(layout::HIGH_RAM));
    let loaded = match checked.format {
        Format::Elf => Elf::load(memory, None, file, high_ram),
        Format::BzImage => BzImage::load(memory, None, file, high_ram),
    };
    loaded.map_err(BootError::Kernel)
}

/// What a kernel takes.
pub(super) struct Limits {
    pub(super) initrd_addr_max: u64,
    pub(super) command_line: usize,
    /// Memory that the kernel needs from its load address on before it reads the map.
    pub(super) init_size: u64,
}

impl Limits {
    pub(super) fn of(header: Option<&setup_header>) -> Self {
        match header {
            Some(header) => Self {
                initrd_addr_max: u64::from(header.initrd_addr_max),
                command_line: usize::try_from(header.cmdline_size).unwrap_or(usize::MAX),
                init_size: u64::from(header.init_size),
            },
            None => Self {
                initrd_addr_max: INITRD_ADDR_MAX,
                command_line: ELF_COMMAND_LINE_MAX,
                init_size: 0,
            },
        }
    }
}
