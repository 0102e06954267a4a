//! Where the initial RAM disk goes.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use devices::GuestMemory;
use linux_loader::loader::KernelLoaderResult;
use vm_memory::{Bytes, GuestAddress};

use super::super::layout;
use super::BootError;
use super::kernel::Limits;

const PAGE: u64 = 4096;

/// Where an initrd lies in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Puts the initrd as high as RAM below the hole and the kernel allow.
pub(super) fn load(
    memory: &GuestMemory,
    file: &mut File,
    kernel: &KernelLoaderResult,
    limits: &Limits,
    ram_bytes: u64,
) -> Result<Initrd, BootError> {
    let read_error = |source| BootError::Read {
        what: "initrd",
        source,
    };
    let len = file.seek(SeekFrom::End(0)).map_err(read_error)?;
    file.rewind().map_err(read_error)?;
    let kernel_end = kernel
        .kernel_end
        .max(kernel.kernel_load.0.saturating_add(limits.init_size));
    let (below, _) = layout::split_ram(ram_bytes);
    let top = below.min(limits.initrd_addr_max.saturating_add(1));
    let address = top
        .checked_sub(len)
        .map(|address| address & !(PAGE - 1))
        .filter(|address| *address >= kernel_end)
        .ok_or(BootError::InitrdRoom {
            bytes: len,
            kernel_end,
        })?;
    let count = usize::try_from(len).map_err(|_| BootError::InitrdRoom {
        bytes: len,
        kernel_end,
    })?;
    memory
        .read_exact_volatile_from(GuestAddress(address), file, count)
        .map_err(BootError::write("initrd"))?;
    Ok(Initrd { address, len })
}
