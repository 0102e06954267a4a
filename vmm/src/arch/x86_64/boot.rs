//! From a kernel image to a vCPU's first instruction: image, initrd, command line, boot protocol
//! structures and ACPI tables in guest memory.

mod check;
pub(super) mod error;
mod initrd;
mod kernel;
mod pvh;
mod reset_vector;
mod zero_page;

use devices::GuestMemory;
use linux_loader::loader::elf::PvhBootCapability;
use std::ops::Range;
use vm_memory::{Bytes, GuestAddress};

pub use self::check::{CheckedKernel, Format, KernelFault, check_kernel};
pub use self::error::BootError;
use self::kernel::Limits;
use super::cpu;
pub use super::regs::EntryPoint;
use super::{acpi, layout, smbios};
use crate::payload::Payload;
use crate::plan::{CpuPlan, IdentityPlan, NodePlan};

/// Offset of the 64-bit entry point in a bzImage (Linux `Documentation/arch/x86/boot.rst`).
const BZIMAGE_ENTRY_64: u64 = 0x200;

/// Gives the guest a new generation ID, for the first time or another one.
pub fn renew_generation(memory: &GuestMemory) -> Result<(), BootError> {
    let mut id = [0_u8; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).map_err(|errno| {
        BootError::Read {
            what: "kernel's random numbers",
            source: errno.into(),
        }
    })?;
    memory
        .write_slice(&id, GuestAddress(layout::GENERATION_ID))
        .map_err(BootError::write("generation ID"))
}

/// What is booted.
pub struct BootSource<'a> {
    /// Its files.
    pub payload: &'a mut Payload,
    /// What the machine's tables say of it.
    pub identity: &'a IdentityPlan,
    /// The vCPUs.
    pub cpu: &'a CpuPlan,
    /// PCI slots whose devices come and go.
    pub hotplug_slots: &'a [u8],
    /// NUMA nodes.
    pub nodes: &'a [NodePlan],
    /// PCI memory window above 4 GiB; may be empty.
    pub high_window: &'a Range<u64>,
    /// PCI slots whose devices have an ACPI index, and that.
    pub acpi_indexes: &'a [(u8, u16)],
    /// Size of guest RAM in bytes.
    pub ram_bytes: u64,
}

/// Fills guest memory; the boot vCPU's entry point.
pub fn load(memory: &GuestMemory, source: BootSource<'_>) -> Result<EntryPoint, BootError> {
    let (kernel, initrd, cmdline) = match source.payload {
        Payload::Linux {
            kernel,
            initrd,
            cmdline,
        } => (kernel, initrd, cmdline),
        Payload::Firmware(_) => return Err(BootError::Firmware),
    };
    let checked = check_kernel(kernel)?;
    check_room(checked.end, source.ram_bytes)?;
    let kernel = kernel::load(memory, kernel, checked)?;
    let limits = Limits::of(kernel.setup_header.as_ref());
    write_command_line(memory, cmdline, limits.command_line)?;
    let initrd = match initrd {
        Some(file) => Some(initrd::load(
            memory,
            file,
            &kernel,
            &limits,
            source.ram_bytes,
        )?),
        None => None,
    };
    smbios::write_tables(memory, source.identity)?;
    reset_vector::write(memory)?;
    let described = acpi::Described {
        apic_ids: &cpu::apic_ids(source.cpu),
        hotplug_slots: source.hotplug_slots,
        nodes: source.nodes,
        acpi_indexes: source.acpi_indexes,
        ram_bytes: source.ram_bytes,
        high_window: source.high_window,
    };
    let rsdp = acpi::write_tables(memory, &described)?;
    if let PvhBootCapability::PvhEntryPresent(entry) = kernel.pvh_boot_cap {
        if !(layout::HIGH_RAM..checked.end).contains(&entry.0) {
            return Err(KernelFault::Entry(entry.0).into());
        }
        pvh::write(memory, source.ram_bytes, initrd, rsdp)?;
        return Ok(EntryPoint::Pvh { ip: entry.0 });
    }
    zero_page::write(
        memory,
        source.ram_bytes,
        initrd,
        rsdp,
        &kernel,
        cmdline.len(),
    )?;
    let offset = match kernel.setup_header {
        Some(_) => BZIMAGE_ENTRY_64,
        None => 0,
    };
    Ok(EntryPoint::Linux64 {
        ip: kernel.kernel_load.0 + offset,
    })
}

/// Whether RAM reaches to where the kernel needs it.
fn check_room(kernel_end: u64, ram_bytes: u64) -> Result<(), BootError> {
    let (below, _) = layout::split_ram(ram_bytes);
    match kernel_end <= below {
        true => Ok(()),
        false => Err(BootError::KernelRoom {
            kernel_end,
            ram_end: below,
        }),
    }
}

fn write_command_line(memory: &GuestMemory, cmdline: &str, max: usize) -> Result<(), BootError> {
    let max = max.min(layout::COMMAND_LINE_MAX - 1);
    if cmdline.len() > max {
        return Err(BootError::CommandLine {
            len: cmdline.len(),
            max,
        });
    }
    let mut bytes = Vec::with_capacity(cmdline.len() + 1);
    bytes.extend_from_slice(cmdline.as_bytes());
    bytes.push(0);
    memory
        .write_slice(&bytes, GuestAddress(layout::COMMAND_LINE))
        .map_err(BootError::write("command line"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use linux_loader::loader::elf::start_info::hvm_start_info;
    use vm_memory::GuestMemoryBackend;

    use super::*;
    use crate::plan::{ChassisPlan, HypervisorPlan};

    const RAM: u64 = 64 << 20;

    static NOBODY: IdentityPlan = IdentityPlan {
        uuid: [0; 16],
        serial: String::new(),
        chassis: ChassisPlan {
            manufacturer: None,
            version: None,
            serial: None,
            asset: None,
            sku: None,
        },
    };

    static ONE_VCPU: CpuPlan = CpuPlan {
        sockets: 1,
        cores: 1,
        threads: 1,
        features: Vec::new(),
        model: None,
        hypervisor: HypervisorPlan {
            kvm_hidden: false,
            kvmclock_hidden: false,
            hyperv: None,
        },
    };

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), RAM as usize)]).expect("memory")
    }

    fn file(contents: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(contents).expect("write");
        file
    }

    fn boot(
        memory: &GuestMemory,
        kernel: &[u8],
        initrd: Option<File>,
        cmdline: &str,
    ) -> Result<EntryPoint, BootError> {
        let kernel = file(kernel);
        let cmdline = cmdline.to_owned();
        let payload = Payload::Linux {
            kernel,
            initrd,
            cmdline,
        };
        start(memory, payload)
    }

    fn start(memory: &GuestMemory, mut payload: Payload) -> Result<EntryPoint, BootError> {
        let source = BootSource {
            payload: &mut payload,
            identity: &NOBODY,
            cpu: &ONE_VCPU,
            hotplug_slots: &[],
            nodes: &[],
            high_window: &(0..0),
            acpi_indexes: &[],
            ram_bytes: RAM,
        };
        load(memory, source)
    }

    /// A 64-bit ELF with one segment at 2 MiB and, if asked, a PVH note.
    fn elf(pvh: Option<u32>) -> Vec<u8> {
        let mut image = vec![0_u8; 0x200];
        let put = |image: &mut Vec<u8>, offset: usize, bytes: &[u8]| {
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(&mut image, 0, b"\x7fELF\x02\x01\x01");
        put(&mut image, 16, &2_u16.to_le_bytes());
        put(&mut image, 18, &62_u16.to_le_bytes());
        put(&mut image, 20, &1_u32.to_le_bytes());
        put(&mut image, 24, &0x20_0010_u64.to_le_bytes());
        put(&mut image, 32, &64_u64.to_le_bytes());
        put(&mut image, 52, &64_u16.to_le_bytes());
        put(&mut image, 54, &56_u16.to_le_bytes());
        put(&mut image, 56, &2_u16.to_le_bytes());
        let segment = |image: &mut Vec<u8>, index: usize, kind: u32, offset: u64, size: u64| {
            let header = 64 + index * 56;
            put(image, header, &kind.to_le_bytes());
            put(image, header + 8, &offset.to_le_bytes());
            put(image, header + 24, &0x20_0000_u64.to_le_bytes());
            put(image, header + 32, &size.to_le_bytes());
            put(image, header + 40, &size.to_le_bytes());
        };
        segment(&mut image, 0, 1, 0x100, 0x20);
        image[0x100..0x120].fill(0xf4);
        if let Some(entry) = pvh {
            segment(&mut image, 1, 4, 0x180, 20);
            put(&mut image, 0x180, &4_u32.to_le_bytes());
            put(&mut image, 0x184, &4_u32.to_le_bytes());
            put(&mut image, 0x188, &18_u32.to_le_bytes());
            put(&mut image, 0x18c, b"Xen\0");
            put(&mut image, 0x190, &entry.to_le_bytes());
        }
        image
    }

    fn bzimage(xloadflags: u16) -> Vec<u8> {
        let mut image = vec![0_u8; 5 * 512 + 0x1000];
        image[0x1f1] = 4;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        image[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
        image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x20_0000_u32.to_le_bytes());
        image
    }

    #[test]
    fn an_elf_with_a_pvh_note_starts_there() {
        let memory = memory();
        let initrd = Some(file(&[0xab; 5000]));
        let entry = boot(&memory, &elf(Some(0x20_0004)), initrd, "console=ttyS0").expect("load");
        assert_eq!(entry, EntryPoint::Pvh { ip: 0x20_0004 });
        let start: hvm_start_info = memory
            .read_obj(GuestAddress(layout::PVH_START_INFO))
            .expect("start info");
        assert_eq!(start.magic, 0x336e_c578);
        assert_eq!(start.cmdline_paddr, layout::COMMAND_LINE);
        assert_eq!(start.nr_modules, 1);
        let address: u64 = memory
            .read_obj(GuestAddress(layout::PVH_MODULES))
            .expect("module");
        assert_eq!(address, (RAM - 5000) & !0xfff);
        assert_eq!(
            memory
                .read_obj::<u8>(GuestAddress(address + 4999))
                .expect("initrd"),
            0xab
        );
        let mut text = [0; 14];
        memory
            .read_slice(&mut text, GuestAddress(layout::COMMAND_LINE))
            .expect("cmdline");
        assert_eq!(&text, b"console=ttyS0\0");
    }

    #[test]
    fn an_elf_without_a_note_and_a_bzimage_start_in_64_bit_mode() {
        let memory = memory();
        let entry = boot(&memory, &elf(None), None, "").expect("load");
        assert_eq!(entry, EntryPoint::Linux64 { ip: 0x20_0010 });
        let entry = boot(&memory, &bzimage(1), None, "quiet").expect("load");
        assert_eq!(entry, EntryPoint::Linux64 { ip: 0x10_0200 });
        let zero = zero_page::read_zero_page(&memory);
        assert_eq!({ zero.hdr.cmd_line_ptr }, 0x2_0000);
        assert_eq!({ zero.hdr.type_of_loader }, 0xff);
        assert_eq!(zero.e820_entries, 4);
    }

    #[test]
    fn refusals_name_the_cause() {
        let memory = memory();
        let check = |contents: &[u8], cmdline: &str| {
            boot(&memory, contents, None, cmdline).expect_err("refused")
        };
        let fault = |contents: &[u8]| match check(contents, "") {
            BootError::Fault(fault) => fault,
            other => panic!("{other:?}"),
        };
        assert!(matches!(fault(b""), KernelFault::Empty));
        assert!(matches!(fault(&[0; 4096]), KernelFault::Foreign(_)));
        assert!(matches!(fault(b"MZ"), KernelFault::Foreign(_)));
        assert!(matches!(
            fault(&elf(None)[..0x80]),
            KernelFault::Truncated { .. }
        ));
        assert!(matches!(
            fault(&elf(None)[..0x110]),
            KernelFault::Truncated { .. }
        ));
        assert!(matches!(
            fault(&bzimage(0)),
            KernelFault::No64BitEntry { .. }
        ));
        let changed = |mut image: Vec<u8>, offset: usize, bytes: &[u8]| {
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
            fault(&image)
        };
        // Of another machine; an entry, segments and a length that cannot be.
        let foreign = changed(elf(None), 18, &183_u16.to_le_bytes());
        assert!(matches!(foreign, KernelFault::Foreign(_)));
        let note = check(&elf(Some(0x20_0020)), "");
        assert!(matches!(
            note,
            BootError::Fault(KernelFault::Entry(0x20_0020))
        ));
        let entry = changed(elf(None), 24, &0x20_0020_u64.to_le_bytes());
        assert!(matches!(entry, KernelFault::Entry(0x20_0020)));
        let low = changed(elf(None), 64 + 24, &0x1000_u64.to_le_bytes());
        assert!(matches!(low, KernelFault::Segment { .. }));
        let wraps = changed(elf(None), 64 + 40, &u64::MAX.to_le_bytes());
        assert!(matches!(wraps, KernelFault::Segment { .. }));
        let longer = changed(bzimage(1), 0x1f4, &0x101_u32.to_le_bytes());
        assert!(matches!(longer, KernelFault::Truncated { .. }));
        let mut large = bzimage(1);
        large[0x260..0x264].copy_from_slice(&(RAM as u32).to_le_bytes());
        assert!(matches!(check(&large, ""), BootError::KernelRoom { .. }));
        let long = "x".repeat(2048);
        assert!(matches!(
            check(&bzimage(1), &long),
            BootError::CommandLine {
                len: 2048,
                max: 2047
            }
        ));
    }

    #[test]
    fn an_initrd_that_does_not_fit_is_refused() {
        let memory = memory();
        let mut initrd = tempfile::tempfile().expect("temporary file");
        initrd.set_len(RAM).expect("sparse");
        initrd.flush().expect("flush");
        let error = boot(&memory, &bzimage(1), Some(initrd), "").expect_err("refused");
        assert!(matches!(error, BootError::InitrdRoom { .. }));
        assert!(memory.check_range(GuestAddress(0), 1));
    }

    #[test]
    fn firmware_waits_for_the_machine_that_it_needs() {
        let error = start(&memory(), Payload::Firmware(file(b"code"))).expect_err("refused");
        assert!(matches!(error, BootError::Firmware));
        assert!(error.is_refusal());
    }
}
