//! Why a disk cannot be booted.

use std::error::Error;
use std::io;

use thiserror::Error;
use vmm::arch::boot::KernelFault;

/// A disk cannot be booted.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It cannot be read.
    #[error("The disk cannot be read")]
    Read(#[source] io::Error),
    /// Its partition table is damaged.
    #[error("The partition table ({kind}) is damaged")]
    Table {
        /// The kind of table.
        kind: &'static str,
        /// What is wrong.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It has no boot entry.
    #[error("There is no boot entry: {found}")]
    Nothing {
        /// What there is, in words.
        found: String,
    },
    /// None of its entries is the one asked for.
    #[error("There is no boot entry {name:?}; there are {}", listed(there))]
    NoSuchEntry {
        /// The name asked for.
        name: String,
        /// The entries' names.
        there: Vec<String>,
    },
    /// A file of the entry cannot be read.
    #[error("Boot entry {entry:?} needs {path}, which cannot be read")]
    File {
        /// The entry.
        entry: String,
        /// The file and its partition.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file of the entry is larger than any.
    #[error("Boot entry {entry:?} needs {path}, which has more than {} MiB", .max >> 20)]
    TooLarge {
        /// The entry.
        entry: String,
        /// The file and its partition.
        path: String,
        /// Bytes that it may have.
        max: u64,
    },
    /// The kernel is none that could be booted.
    #[error("Boot entry {entry:?} has the kernel {path}, which cannot be booted")]
    Kernel {
        /// The entry.
        entry: String,
        /// The file and its partition.
        path: String,
        /// What is wrong with it.
        #[source]
        source: KernelFault,
    },
    /// The options are none.
    #[error(
        "Boot entry {entry:?} has options of {len} bytes; a kernel takes {max}, and no control characters"
    )]
    Options {
        /// The entry.
        entry: String,
        /// Bytes of its options.
        len: usize,
        /// Bytes that it may have.
        max: usize,
    },
    /// There is no memory for what is read.
    #[error("Cannot make a file in memory for what is booted")]
    Memory(#[source] io::Error),
}

impl DiskError {
    pub(super) fn table(
        kind: &'static str,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        Self::Table { kind, source }
    }
}

fn listed(names: &[String]) -> String {
    let names = names.iter().map(|name| format!("{name:?}"));
    names.collect::<Vec<_>>().join(", ")
}
