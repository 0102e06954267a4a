//! RAM and registers of a machine that stands still as an ELF core, for gdb and crash (System V ABI, ELF-64): a note
//! `NT_PRSTATUS` for each vCPU, RAM under its physical addresses, which are in the lower half of the address
//! space, and the same bytes of the file again under the addresses that the guest's kernel has for them, in the upper half.

use std::fs::File;
use std::io::{self, Write};

use thiserror::Error;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::dump::{MACHINE, kernel_mappings, status};
use crate::arch::state::StateError;
use crate::machine::Machine;
use crate::memory::Ram;

/// Bytes of the file's header and of a program header.
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;

/// `ET_CORE`, `PT_LOAD`, `PT_NOTE`, and `PF_R | PF_W | PF_X`.
const CORE: u16 = 4;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
const ALL: u32 = 7;
/// `NT_PRSTATUS`, whose owner is this.
const PRSTATUS: u32 = 1;
const OWNER: &[u8; 8] = b"CORE\0\0\0\0";
const OWNER_LEN: u32 = 5;

/// RAM begins at a page of the file.
const ALIGNMENT: u64 = 4096;

/// A dump cannot be written.
#[derive(Debug, Error)]
pub enum DumpError {
    /// Registers cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The file.
    #[error("Cannot write the dump")]
    Write(#[from] io::Error),
}

/// Guest virtual memory that lies in one piece in guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where, as the guest's kernel sees it.
    pub address: u64,
    /// Where it is.
    pub physical: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// Writes the machine, whose vCPUs are parked, to `file`, which is empty.
pub fn write(machine: &Machine, ram: &Ram, mut file: File) -> Result<(), DumpError> {
    let mut notes = Vec::new();
    let mut mappings = Vec::new();
    for (number, vcpu) in (0..).zip(machine.vcpus().parked()) {
        push_note(&mut notes, &status(&vcpu, number)?);
        // All have the same kernel.
        if number == 0 {
            mappings = kernel_mappings(&vcpu, ram.memory())?;
        }
    }
    let regions = ram.memory().iter();
    let regions = regions.map(|region| (region.start_addr().raw_value(), region.len()));
    let (header, start) = header(&regions.collect::<Vec<_>>(), &mappings, &notes);
    file.write_all(&header)?;
    file.write_all(&notes)?;
    ram.write_to(&mut file, start)?;
    Ok(())
}

fn push_note(notes: &mut Vec<u8>, contents: &[u8]) {
    for word in [OWNER_LEN, contents.len() as u32, PRSTATUS] {
        notes.extend(word.to_le_bytes());
    }
    notes.extend(OWNER);
    notes.extend(contents);
    notes.resize(notes.len().next_multiple_of(4), 0);
}

/// The headers of a core with RAM in these `regions`, base and length; and where in the file RAM begins.
fn header(regions: &[(u64, u64)], mappings: &[Mapping], notes: &[u8]) -> (Vec<u8>, u64) {
    let mut loads = loads(regions, mappings);
    let count = 1 + loads.len();
    let notes_at = HEADER + PROGRAM_HEADER * count as u64;
    let start = (notes_at + notes.len() as u64).next_multiple_of(ALIGNMENT);
    for load in &mut loads {
        load.offset += start;
    }
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [CORE, MACHINE] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend(1_u32.to_le_bytes());
    // Entry point, program headers, sections.
    for word in [0, HEADER, 0] {
        bytes.extend(u64::to_le_bytes(word));
    }
    bytes.extend(0_u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, count as u16, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    let note = Segment {
        kind: NOTE,
        offset: notes_at,
        bytes: notes.len() as u64,
        ..Segment::default()
    };
    for segment in std::iter::once(&note).chain(&loads) {
        segment.push(&mut bytes);
    }
    (bytes, start)
}

/// A program header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    physical: u64,
    bytes: u64,
}

impl Segment {
    fn push(&self, to: &mut Vec<u8>) {
        for word in [self.kind, ALL] {
            to.extend(word.to_le_bytes());
        }
        let (file, memory, alignment) = (self.bytes, self.bytes, 1);
        for word in [
            self.offset,
            self.address,
            self.physical,
            file,
            memory,
            alignment,
        ] {
            to.extend(word.to_le_bytes());
        }
    }
}

/// What is where in RAM's part of the file: RAM, then what of the mappings is RAM.
fn loads(regions: &[(u64, u64)], mappings: &[Mapping]) -> Vec<Segment> {
    let mut places = Vec::new();
    let mut offset = 0;
    for &(base, bytes) in regions {
        places.push(Segment {
            kind: LOAD,
            offset,
            address: base,
            physical: base,
            bytes,
        });
        offset += bytes;
    }
    let mut all = places.clone();
    for mapping in mappings {
        for place in &places {
            let from = mapping.physical.max(place.physical);
            let mapped_to = mapping.physical.saturating_add(mapping.bytes);
            let to = mapped_to.min(place.physical + place.bytes);
            if from < to {
                all.push(Segment {
                    kind: LOAD,
                    offset: place.offset + (from - place.physical),
                    address: mapping.address.wrapping_add(from - mapping.physical),
                    physical: from,
                    bytes: to - from,
                });
            }
        }
    }
    all.truncate(MAX_SEGMENTS);
    all
}

/// Program headers beside the note's that a core can have without sections (`PN_XNUM`).
const MAX_SEGMENTS: usize = 0xfffe - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mapped_is_shown_where_it_is_ram() {
        let regions = [(0, 0x10_0000), (0x100_0000, 0x20_0000)];
        let mapping = Mapping {
            address: 0xffff_8000_0000_0000,
            physical: 0xf_f000,
            bytes: 0x100_0000,
        };
        let loads = loads(&regions, &[mapping]);
        let [.., low, high] = loads.as_slice() else {
            panic!("{loads:x?}");
        };
        assert_eq!(loads.len(), 4);
        assert_eq!(
            (low.offset, low.address, low.physical, low.bytes),
            (0xf_f000, 0xffff_8000_0000_0000, 0xf_f000, 0x1000)
        );
        assert_eq!(
            (high.offset, high.address, high.physical, high.bytes),
            (0x10_0000, 0xffff_8000_00f0_1000, 0x100_0000, 0xf_f000)
        );
    }

    #[test]
    fn a_header_says_where_all_is() {
        let mut notes = Vec::new();
        push_note(&mut notes, &[7; 336]);
        assert_eq!(notes.len(), 12 + 8 + 336);
        let (bytes, start) = header(&[(0, 0x10_0000)], &[], &notes);
        assert_eq!(bytes.len() as u64, HEADER + 2 * PROGRAM_HEADER);
        assert_eq!(start, 4096);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        assert_eq!(word(32), HEADER);
        let load = (HEADER + PROGRAM_HEADER) as usize;
        assert_eq!((word(load + 8), word(load + 32)), (start, 0x10_0000));
    }
}
