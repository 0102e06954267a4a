//! Reads disks as a boot loader would: partitions, file systems, boot entries, and the kernel of one of them.
//!
//! ```text
//!   Read + Seek ─▶ disk ─▶ partitions ─▶ filesystem ─▶ entries ─▶ payload
//!                 aligned   GPT, MBR     ext4, XFS,    grub.cfg,   kernel, initrd,
//!                 chunks                 Btrfs, FAT    BLS, UKI,   command line
//!                                                      syslinux
//! ```
//!
//! A disk belongs to whoever writes to it, so nothing of it is believed: all sizes, counts and depths are
//! bounded, and what is read of one disk altogether is, too, which ends every circle. It is done in a process that
//! can do nothing else ([`process`]).

mod disk;
mod entries;
mod error;
mod filesystem;
mod grub;
mod inspect;
mod partitions;
mod payload;
pub mod process;
pub mod protocol;

pub use self::disk::{Disk, ReadSeek};
pub use self::entries::Entry;
pub use self::error::DiskError;
pub use self::inspect::{Inspection, inspect};
pub use self::payload::{MAX_INITRD, MAX_KERNEL, Payload, boot};
