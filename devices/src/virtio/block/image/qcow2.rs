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
//! guest flushes; then counts become durable before tables that point to what they count, and data before
//! both ([`writer`]). So after a crash, at any moment, `qemu-img check` finds no error: clusters at most that
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

pub use self::create::create;
pub use self::header::{Backing, HEADER_BYTES, Header, HeaderError, is_qcow2};
pub(in crate::virtio::block) use self::layers::Layered;
pub use self::layers::OpenImageError;
