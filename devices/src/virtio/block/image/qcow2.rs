//! qcow2 images (QEMU's `docs/interop/qcow2.rst`), alone or over backing files.
//!
//! ```text
//! layers    top (written to) over backing files; where a range of the disk is, without waiting
//!   tables  L2 tables of one file, a bounded number of them in memory
//! writer    new clusters, and in which order they become durable
//!   counts  reference counts: which clusters are taken
//! header, create, compressed: the format
//! ```
//!
//! New clusters are taken from behind the end of the file, so they are zero, and none is ever given
//! back: a discard punches a hole where the cluster is. What changes in tables stays in memory until the
//! guest flushes, or there is much of it; then data and counts become durable before tables that point to what they
//! count ([`writer`]). So after a crash, at any moment, `qemu-img check` finds no error: clusters at most that
//! are counted and not used.

mod compressed;
mod counts;
mod create;
mod entry;
mod header;
mod layers;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

pub(in crate::virtio::block) use self::create::CLUSTER as NEW_CLUSTER;
pub use self::create::create;
pub use self::header::{Backing, HEADER_BYTES, Header, HeaderError, is_qcow2};
pub(in crate::virtio::block) use self::layers::Layered;
pub use self::layers::OpenImageError;
use super::damaged;
use crate::virtio::block::file::AlignedBuffer;

/// What is read and written of tables at once, bytes: as direct I/O wants it.
const PAGE: usize = AlignedBuffer::ALIGN;

/// What all numbers in the format are.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (chunks, _) = bytes.as_chunks();
    chunks.iter().map(|bytes| u64::from_be_bytes(*bytes))
}

/// Writes numbers to the beginning of `bytes`, as many as there are and fit.
fn put_numbers(bytes: &mut [u8], numbers: impl IntoIterator<Item = u64>) {
    let (chunks, _) = bytes.as_chunks_mut();
    for (bytes, number) in chunks.iter_mut().zip(numbers) {
        *bytes = number.to_be_bytes();
    }
}
