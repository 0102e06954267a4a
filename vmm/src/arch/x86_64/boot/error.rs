//! Why a kernel cannot be booted.

use std::io;

use thiserror::Error;

use super::check::KernelFault;

/// A kernel cannot be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// Firmware, for which there is no machine.
    #[error(
        "podvisor does not start firmware yet: the machine has neither flash memory below 4 GiB nor the devices by \
         which firmware finds memory and disks"
    )]
    Firmware,
    /// Neither ELF nor bzImage, or damaged.
    #[error("The kernel image is neither a bootable x86-64 ELF file nor a bzImage")]
    Kernel(#[source] linux_loader::loader::Error),
    /// The image could not be read.
    #[error("Cannot read the {what}")]
    Read {
        /// Kernel or initrd.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel is none, or damaged.
    #[error("The kernel cannot be booted")]
    Fault(#[from] KernelFault),
    /// RAM is too small for the kernel.
    #[error("The kernel needs RAM up to {kernel_end:#x}; it ends at {ram_end:#x}")]
    KernelRoom {
        /// End of what it needs.
        kernel_end: u64,
        /// End of RAM below the hole.
        ram_end: u64,
    },
    /// RAM is too small for kernel and initrd.
    #[error(
        "An initrd of {bytes} bytes does not fit into guest RAM above the kernel, which ends at {kernel_end:#x}"
    )]
    InitrdRoom {
        /// Size of the initrd.
        bytes: u64,
        /// End of the kernel.
        kernel_end: u64,
    },
    /// The command line is too long.
    #[error("The kernel command line has {len} bytes; this kernel takes {max}")]
    CommandLine {
        /// Its length.
        len: usize,
        /// The kernel's limit.
        max: usize,
    },
    /// Guest memory could not be written.
    #[error("Cannot write the {what} to guest memory")]
    Write {
        /// The structure.
        what: &'static str,
        /// The cause.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    /// The SMBIOS tables are too large.
    #[error("SMBIOS tables of {bytes} bytes do not fit into {room}")]
    Smbios {
        /// Their size.
        bytes: u64,
        /// Room for them.
        room: u64,
    },
    /// The ACPI tables are too large.
    #[error("ACPI tables of {bytes} bytes do not fit below 1 MiB")]
    Acpi {
        /// Their size.
        bytes: u64,
    },
}

impl BootError {
    /// Whether the fault is in what was asked for.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Firmware
                | Self::Kernel(_)
                | Self::Fault(_)
                | Self::KernelRoom { .. }
                | Self::InitrdRoom { .. }
                | Self::CommandLine { .. }
        )
    }

    pub(in super::super) fn write(
        what: &'static str,
    ) -> impl FnOnce(vm_memory::GuestMemoryError) -> Self {
        move |source| Self::Write { what, source }
    }
}
