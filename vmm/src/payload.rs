//! What a machine boots, as the launcher opened it.

use std::fmt;
use std::fs::File;

/// What a machine boots, and what that is called in messages.
pub struct Boot {
    /// Its path, or where else it is from.
    pub name: String,
    /// Its files.
    pub payload: Payload,
}

/// The files of what a machine boots.
pub enum Payload {
    /// A kernel, which the machine puts into guest memory itself.
    Linux {
        /// Kernel image.
        kernel: File,
        /// Initial RAM disk.
        initrd: Option<File>,
        /// Kernel command line.
        cmdline: String,
    },
    /// Firmware, which finds by itself what there is to boot.
    Firmware(File),
}

impl fmt::Display for Boot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.payload {
            Payload::Linux { .. } => "kernel",
            Payload::Firmware(_) => "firmware",
        };
        write!(formatter, "{what} {}", self.name)
    }
}
