//! Is this a kernel that can be booted? Asked before a byte of it reaches guest memory, since the loader
//! believes what headers say, and a guest that starts in the middle of nothing dies without a word.

use std::io::{self, Read, Seek, SeekFrom};

use thiserror::Error;

use super::super::layout;

/// Program headers that are looked at; a kernel has five.
const MAX_SEGMENTS: u16 = 64;

/// ELF (System V ABI): `e_machine` of x86-64, `p_type` of what is loaded.
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;

/// The setup header of a bzImage (Linux `Documentation/arch/x86/boot.rst`).
const BOOT_SECTOR: u64 = 512;
const HEADER_MAGIC: &[u8] = b"HdrS";
/// `xloadflags`: there is a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1 << 0;

/// A file is no kernel that can be booted.
#[derive(Debug, Error)]
pub enum KernelFault {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It is something else.
    #[error("it is {0}, not an x86-64 ELF file or bzImage")]
    Foreign(String),
    /// Its end is missing.
    #[error("it is truncated: it has {has} of at least {needs} bytes")]
    Truncated {
        /// Its length.
        has: u64,
        /// The length that its headers tell.
        needs: u64,
    },
    /// A segment cannot be where it wants to be.
    #[error("its segment of {len} bytes at {address:#x} cannot be there")]
    Segment {
        /// Guest physical address.
        address: u64,
        /// Bytes in memory.
        len: u64,
    },
    /// It would start outside of itself.
    #[error("its entry point {0:#x} is in none of its segments")]
    Entry(u64),
    /// The bzImage has no 64-bit entry point.
    #[error(
        "the bzImage has no 64-bit entry point (boot protocol {version:#x}, xloadflags {flags:#x})"
    )]
    No64BitEntry {
        /// Boot protocol version.
        version: u16,
        /// Load flags.
        flags: u16,
    },
}

/// Kinds of files that people take for a kernel, by how they begin.
const KNOWN: [(usize, &[u8], &str); 10] = [
    (0, b"\x1f\x8b", "compressed by gzip"),
    (0, b"\xfd7zXZ", "compressed by xz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (0, b"BZh", "compressed by bzip2"),
    (0, b"070701", "an initial RAM disk"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"#!", "a script"),
    (56, b"ARM\x64", "a kernel for 64-bit Arm"),
    (56, b"RSC\x05", "a kernel for RISC-V"),
    (0, b"MZ", "an EFI program"),
];

/// What a kernel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An ELF file.
    Elf,
    /// A bzImage.
    BzImage,
}

/// A kernel that can be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedKernel {
    /// What it is.
    pub format: Format,
    /// Guest physical address where the memory ends that it needs at least.
    pub end: u64,
}

/// Checks a kernel.
pub fn check_kernel(file: &mut (impl Read + Seek)) -> Result<CheckedKernel, KernelFault> {
    let len = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut head = Vec::new();
    file.by_ref().take(0x270).read_to_end(&mut head)?;
    let (format, end) = match Head(&head) {
        _ if head.is_empty() => return Err(KernelFault::Empty),
        head if head.0.starts_with(b"\x7fELF") => (Format::Elf, check_elf(file, &head, len)?),
        head if head.bytes(0x202, 4) == HEADER_MAGIC => {
            (Format::BzImage, check_bzimage(&head, len)?)
        }
        head => return Err(KernelFault::Foreign(head.kind().to_owned())),
    };
    Ok(CheckedKernel { format, end })
}

/// The beginning of a file; what is behind its end is zero.
struct Head<'a>(&'a [u8]);

impl Head<'_> {
    fn bytes(&self, at: usize, len: usize) -> &[u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }

    fn number(&self, at: usize, len: usize) -> u64 {
        let bytes = self.bytes(at, len).iter().rev();
        bytes.fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    fn word(&self, at: usize) -> u16 {
        self.number(at, 2) as u16
    }

    fn kind(&self) -> &'static str {
        let mut known = KNOWN.iter();
        let found = known.find(|(at, mark, _)| self.bytes(*at, mark.len()) == *mark);
        found.map_or("another kind of file", |(.., name)| name)
    }
}

/// Checks an ELF file; where its last segment ends.
fn check_elf(file: &mut (impl Read + Seek), head: &Head<'_>, len: u64) -> Result<u64, KernelFault> {
    let (class, order, machine) = (head.number(4, 1), head.number(5, 1), head.word(18));
    if (class, order, machine) != (2, 1, EM_X86_64) {
        let (bits, order) = (
            if class == 1 { 32 } else { 64 },
            if order == 2 { "big" } else { "little" },
        );
        let text = format!("an ELF file of {bits} bits, {order}-endian, for machine {machine}");
        return Err(KernelFault::Foreign(text));
    }
    let (entry, table, count) = (head.number(24, 8), head.number(32, 8), head.word(56));
    let segments = segments(file, table, count.min(MAX_SEGMENTS), len)?;
    let mut end = 0;
    for segment in &segments {
        let Segment {
            offset,
            address,
            stored,
            size,
        } = *segment;
        let needs = offset.saturating_add(stored);
        if needs > len {
            return Err(KernelFault::Truncated { has: len, needs });
        }
        let last = address.checked_add(size);
        match last {
            Some(last) if address >= layout::HIGH_RAM && stored <= size => end = last.max(end),
            _ => return Err(KernelFault::Segment { address, len: size }),
        }
    }
    let has_entry =
        |segment: &Segment| (segment.address..segment.address + segment.stored).contains(&entry);
    match segments.iter().any(has_entry) {
        true => Ok(end),
        false => Err(KernelFault::Entry(entry)),
    }
}

/// What is loaded of an ELF file.
struct Segment {
    offset: u64,
    address: u64,
    stored: u64,
    size: u64,
}

fn segments(
    file: &mut (impl Read + Seek),
    table: u64,
    count: u16,
    len: u64,
) -> Result<Vec<Segment>, KernelFault> {
    const HEADER: u64 = 56;
    let needs = table.saturating_add(HEADER * u64::from(count));
    if needs > len {
        return Err(KernelFault::Truncated { has: len, needs });
    }
    file.seek(SeekFrom::Start(table))?;
    let mut segments = Vec::new();
    for _ in 0..count {
        let mut bytes = [0; HEADER as usize];
        file.read_exact(&mut bytes)?;
        let header = Head(&bytes);
        if header.number(0, 4) == u64::from(PT_LOAD) && header.number(40, 8) > 0 {
            segments.push(Segment {
                offset: header.number(8, 8),
                address: header.number(24, 8),
                stored: header.number(32, 8),
                size: header.number(40, 8),
            });
        }
    }
    Ok(segments)
}

/// Checks a bzImage; where the memory ends that it needs to begin with.
fn check_bzimage(head: &Head<'_>, len: u64) -> Result<u64, KernelFault> {
    let (version, flags) = (head.word(0x206), head.word(0x236));
    if version < 0x020c || flags & XLF_KERNEL_64 == 0 {
        return Err(KernelFault::No64BitEntry { version, flags });
    }
    let sectors = match head.number(0x1f1, 1) {
        0 => 4,
        sectors => sectors,
    };
    // The part in protected mode, counted in paragraphs.
    let needs = (1 + sectors) * BOOT_SECTOR + head.number(0x1f4, 4) * 16;
    if needs > len {
        return Err(KernelFault::Truncated { has: len, needs });
    }
    // It moves itself to where it prefers to be before it decompresses.
    let start = head.number(0x258, 8).max(layout::HIGH_RAM);
    start
        .checked_add(head.number(0x260, 4))
        .ok_or(KernelFault::Segment {
            address: start,
            len: head.number(0x260, 4),
        })
}
