//! What a chain asks for (virtio 1.2, 5.2.6), read out of guest memory once and checked.

use crate::virtio::chain::Chain;

/// The unit of `sector` and of the capacity, whatever the block size.
pub(super) const SECTOR_SIZE: u64 = 512;

/// Bytes of `struct virtio_blk_req` before the data.
pub(super) const HEADER_SIZE: u32 = 16;

/// Bytes of one `struct virtio_blk_discard_write_zeroes`.
const RANGE_SIZE: u32 = 16;

/// Bytes of the answer to `GET_ID`.
pub(super) const ID_SIZE: usize = 20;

/// Largest discard, sectors (1 GiB).
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Largest range to zero, sectors (128 MiB): it may have to be written.
pub(super) const MAX_ZEROES_SECTORS: u32 = 1 << 18;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// `unmap` in the flags of a range.
const RANGE_UNMAP: u32 = 1;

/// The status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoErr = 1,
    Unsupported = 2,
}

/// A checked request: `offset + len` is within the image, both in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// `len` is all writable bytes but the status.
    Read {
        offset: u64,
        len: u32,
    },
    /// `len` is all readable bytes but the header.
    Write {
        offset: u64,
        len: u32,
    },
    Flush,
    GetId,
    Discard {
        offset: u64,
        len: u64,
    },
    WriteZeroes {
        offset: u64,
        len: u64,
        unmap: bool,
    },
}

/// What the device allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) read_only: bool,
    /// `DISCARD`, and `WRITE_ZEROES` that deallocates.
    pub(super) discard: bool,
}

impl Request {
    /// Reads the request in `chain`, which has a byte for the status, for a disk of `bytes` bytes.
    pub(super) fn parse(chain: &Chain, rules: &Rules, bytes: u64) -> Result<Self, Status> {
        let header: u128 = chain.read_obj(0).ok_or(Status::IoErr)?;
        let (kind, sector) = (header as u32, (header >> 64) as u64);
        let readable = chain.readable_len() - HEADER_SIZE;
        match kind {
            T_IN => {
                let len = chain.writable_len().saturating_sub(1);
                Ok(Self::Read {
                    offset: transfer(sector, len, bytes)?,
                    len,
                })
            }
            T_OUT => {
                rules.writes()?;
                Ok(Self::Write {
                    offset: transfer(sector, readable, bytes)?,
                    len: readable,
                })
            }
            T_FLUSH => Ok(Self::Flush),
            T_GET_ID => Ok(Self::GetId),
            T_DISCARD if rules.discard => Self::parse_discard(chain, readable, rules, bytes),
            T_WRITE_ZEROES => Self::parse_write_zeroes(chain, readable, rules, bytes),
            _ => Err(Status::Unsupported),
        }
    }

    fn parse_discard(
        chain: &Chain,
        readable: u32,
        rules: &Rules,
        bytes: u64,
    ) -> Result<Self, Status> {
        rules.writes()?;
        let range = Range::read(chain, readable)?;
        if range.flags != 0 {
            return Err(Status::Unsupported);
        }
        let (offset, len) = range.within(MAX_DISCARD_SECTORS, bytes)?;
        Ok(Self::Discard { offset, len })
    }

    fn parse_write_zeroes(
        chain: &Chain,
        readable: u32,
        rules: &Rules,
        bytes: u64,
    ) -> Result<Self, Status> {
        rules.writes()?;
        let range = Range::read(chain, readable)?;
        if range.flags & !RANGE_UNMAP != 0 {
            return Err(Status::Unsupported);
        }
        let (offset, len) = range.within(MAX_ZEROES_SECTORS, bytes)?;
        // "May unmap": the driver allows it, the device decides.
        let unmap = range.flags & RANGE_UNMAP != 0 && rules.discard;
        Ok(Self::WriteZeroes { offset, len, unmap })
    }
}

/// A range to discard or to zero. The device takes one in a request.
struct Range {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl Range {
    fn read(chain: &Chain, readable: u32) -> Result<Self, Status> {
        if readable != RANGE_SIZE {
            return Err(Status::IoErr);
        }
        let raw: u128 = chain.read_obj(HEADER_SIZE).ok_or(Status::IoErr)?;
        let (sector, sectors, flags) = (raw as u64, (raw >> 64) as u32, (raw >> 96) as u32);
        Ok(Self {
            sector,
            sectors,
            flags,
        })
    }

    /// Offset and length, of at most `max` sectors within a disk of `bytes` bytes.
    fn within(&self, max: u32, bytes: u64) -> Result<(u64, u64), Status> {
        if self.sectors > max {
            return Err(Status::IoErr);
        }
        let len = u64::from(self.sectors) * SECTOR_SIZE;
        Ok((checked(self.sector, len, bytes)?, len))
    }
}

impl Rules {
    fn writes(&self) -> Result<(), Status> {
        if self.read_only {
            Err(Status::IoErr)
        } else {
            Ok(())
        }
    }
}

/// The offset of a transfer of `len` bytes at `sector` of a disk of `bytes` bytes.
fn transfer(sector: u64, len: u32, bytes: u64) -> Result<u64, Status> {
    if !u64::from(len).is_multiple_of(SECTOR_SIZE) {
        return Err(Status::IoErr);
    }
    checked(sector, u64::from(len), bytes)
}

fn checked(sector: u64, len: u64, bytes: u64) -> Result<u64, Status> {
    let offset = sector.checked_mul(SECTOR_SIZE);
    let end = offset.and_then(|offset| offset.checked_add(len));
    match (offset, end) {
        (Some(offset), Some(end)) if len > 0 && end <= bytes => Ok(offset),
        _ => Err(Status::IoErr),
    }
}
