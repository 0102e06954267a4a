//! Takes from an image when it was made: the same files give the same bytes, so that a guest that is restored finds the
//! disk it had.
//!
//! Offsets are of ECMA-119, sections 8.4 (volume descriptors) and 9.1 (directory records); the library has no other
//! time than now.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const SECTOR: usize = 2048;
/// The first volume descriptor.
const DESCRIPTORS: u64 = 16;
/// More than an image of ours has.
const MAX_DESCRIPTORS: u64 = 16;
/// Types of descriptors that lead to a tree of directories, and the one behind the last.
const PRIMARY: u8 = 1;
const SUPPLEMENTARY: u8 = 2;
const TERMINATOR: u8 = 255;
/// Dates of creation and modification in a descriptor.
const VOLUME_DATES: u64 = 813;
/// Midnight of 1970-01-01, as descriptors say it.
const VOLUME_DATE: [u8; 17] = *b"1970010100000000\0";
/// The record of the root directory in a descriptor.
const ROOT: usize = 156;
/// In a record: place and length of what it is of, its date and flags.
const EXTENT: usize = 2;
const LENGTH: usize = 10;
const DATE: usize = 18;
const FLAGS: usize = 25;
const NAME_LENGTH: usize = 32;
const NAME: usize = 33;
const IS_DIRECTORY: u8 = 2;
/// The same midnight, as records say it.
const RECORD_DATE: [u8; 7] = [70, 1, 1, 0, 0, 0, 0];

/// Sets all dates of an image that the library has written.
pub(super) fn settle(image: &File) -> io::Result<()> {
    for number in DESCRIPTORS..DESCRIPTORS + MAX_DESCRIPTORS {
        let at = number * SECTOR as u64;
        let mut descriptor = [0; SECTOR];
        image.read_exact_at(&mut descriptor, at)?;
        match descriptor[0] {
            PRIMARY | SUPPLEMENTARY => {
                image.write_all_at(&[VOLUME_DATE, VOLUME_DATE].concat(), at + VOLUME_DATES)?;
                image.write_all_at(&RECORD_DATE, at + (ROOT + DATE) as u64)?;
                directories(image, Extent::of(&descriptor[ROOT..]))?;
            }
            TERMINATOR => break,
            _ => {}
        }
    }
    Ok(())
}

/// Where a directory is.
struct Extent {
    sector: u32,
    bytes: u32,
}

impl Extent {
    /// What a record is of.
    fn of(record: &[u8]) -> Self {
        let number = |at: usize| record[at..at + 4].iter().rev();
        let number = |at| number(at).fold(0, |number, byte| number << 8 | u32::from(*byte));
        Self {
            sector: number(EXTENT),
            bytes: number(LENGTH),
        }
    }
}

/// Sets the dates in a directory and those below it.
fn directories(image: &File, root: Extent) -> io::Result<()> {
    let mut open = vec![root];
    while let Some(extent) = open.pop() {
        let at = u64::from(extent.sector) * SECTOR as u64;
        let mut records = vec![0; extent.bytes as usize];
        image.read_exact_at(&mut records, at)?;
        for sector in records.chunks_mut(SECTOR) {
            let mut rest = sector;
            // No record goes on in the next sector; what is left of this one is zero.
            while rest.len() > NAME && usize::from(rest[0]) > NAME {
                let len = usize::from(rest[0]).min(rest.len());
                let (record, behind) = rest.split_at_mut(len);
                record[DATE..FLAGS].copy_from_slice(&RECORD_DATE);
                // Not the directory itself, nor the one above it, which have names of one byte.
                let is_other = record[NAME_LENGTH] > 1 || record[NAME] > 1;
                if record[FLAGS] & IS_DIRECTORY != 0 && is_other {
                    open.push(Extent::of(record));
                }
                rest = behind;
            }
        }
        image.write_all_at(&records, at)?;
    }
    Ok(())
}
