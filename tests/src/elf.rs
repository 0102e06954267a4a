//! Kernels made on the spot: a few instructions with a PVH note, and Linux without one.

/// Where the code of [`tiny`] is loaded and entered, in 32-bit protected mode without paging.
pub const ENTRY: u32 = 0x10_0000;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_NULL: u32 = 0;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// A PVH kernel of nothing but `code`.
pub fn tiny(code: &[u8]) -> Vec<u8> {
    let note = pvh_note();
    let note_at = HEADER + 2 * PROGRAM_HEADER;
    let code_at = note_at + note.len();
    let mut elf = header();
    elf.extend(program_header(PT_LOAD, code_at, code.len()));
    elf.extend(program_header(PT_NOTE, note_at, note.len()));
    elf.extend(note);
    elf.extend(code);
    elf
}

/// Makes the program headers of a kernel's notes void, so that it must be entered by the Linux
/// 64-bit protocol.
pub fn without_notes(mut elf: Vec<u8>) -> Vec<u8> {
    let start = u64::from_le_bytes(field(&elf, 0x20)) as usize;
    let count = u16::from_le_bytes(field(&elf, 0x38)).into();
    let mut found = false;
    for at in (start..).step_by(PROGRAM_HEADER).take(count) {
        if u32::from_le_bytes(field(&elf, at)) == PT_NOTE {
            elf[at..at + 4].copy_from_slice(&PT_NULL.to_le_bytes());
            found = true;
        }
    }
    assert!(found, "the kernel has no notes");
    elf
}

fn field<const N: usize>(elf: &[u8], at: usize) -> [u8; N] {
    elf[at..at + N].try_into().expect("the length is N")
}

fn header() -> Vec<u8> {
    const IDENT: [u8; 16] = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0";
    let mut header = IDENT.to_vec();
    let half = |header: &mut Vec<u8>, value: usize| {
        header.extend((value as u16).to_le_bytes());
    };
    half(&mut header, 2); // executable
    half(&mut header, 62); // x86-64
    header.extend(1u32.to_le_bytes());
    header.extend(u64::from(ENTRY).to_le_bytes());
    header.extend((HEADER as u64).to_le_bytes()); // program headers
    header.extend(0u64.to_le_bytes()); // no section headers
    header.extend(0u32.to_le_bytes());
    for value in [HEADER, PROGRAM_HEADER, 2, 0, 0, 0] {
        half(&mut header, value);
    }
    header
}

fn program_header(kind: u32, offset: usize, len: usize) -> Vec<u8> {
    const READ_EXECUTE: u32 = 5;
    let mut header = kind.to_le_bytes().to_vec();
    header.extend(READ_EXECUTE.to_le_bytes());
    let (address, len) = (u64::from(ENTRY), len as u64);
    for value in [offset as u64, address, address, len, len, 4] {
        header.extend(value.to_le_bytes());
    }
    header
}

fn pvh_note() -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4, 4, XEN_ELFNOTE_PHYS32_ENTRY] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(ENTRY.to_le_bytes());
    note
}
