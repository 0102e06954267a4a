//! Entries of L1 and L2 tables.

use super::header::MAX_OFFSET;

/// The cluster has one user, and may be written where it is.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros (version 3).
const ZERO: u64 = 1 << 0;
/// Bits 9 to 55.
const OFFSET: u64 = (MAX_OFFSET - 1) & !0x1ff;

/// What a guest cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster {
    /// Whatever the backing file has.
    Below,
    /// Zeros.
    Zero {
        /// Where a cluster is kept for it, of any content.
        place: Option<u64>,
    },
    /// At an offset of the file.
    Here {
        /// Where.
        host: u64,
        /// May be written there.
        owned: bool,
    },
    /// Compressed bytes of the file.
    Compressed {
        /// Where they begin.
        host: u64,
        /// How many there may be.
        len: usize,
    },
    /// No image has such an entry.
    Damaged,
}

/// What `entry` of an L2 table says, for clusters of `1 << bits` bytes.
pub(super) fn cluster(entry: u64, bits: u32) -> Cluster {
    if entry & COMPRESSED != 0 {
        let shift = 62 - (bits - 8);
        let host = entry & ((1 << shift) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> shift;
        let len = (sectors + 1) * 512 - host % 512;
        return Cluster::Compressed {
            host,
            len: len as usize,
        };
    }
    let (host, owned) = (entry & OFFSET, entry & COPIED != 0);
    if !host.is_multiple_of(1 << bits) {
        return Cluster::Damaged;
    }
    match (entry & ZERO != 0, host) {
        (true, 0) => Cluster::Zero { place: None },
        (true, _) => Cluster::Zero {
            place: owned.then_some(host),
        },
        (false, 0) => Cluster::Below,
        (false, _) => Cluster::Here { host, owned },
    }
}

/// The entry of a cluster, or of an L2 table, at `host`, which has no other user.
pub(super) fn owned(host: u64) -> u64 {
    host | COPIED
}

/// The entry of a cluster of zeros without a place.
pub(super) fn zero() -> u64 {
    ZERO
}

/// Where the L2 table is that an L1 entry points to; `None` if there is none.
pub(super) fn table(entry: u64) -> Option<u64> {
    let host = entry & OFFSET;
    (host != 0).then_some(host)
}

/// Whether the table that an L1 entry points to may be written where it is.
pub(super) fn is_owned(entry: u64) -> bool {
    entry & COPIED != 0
}
