//! What is to run, whoever runs it.

use std::path::PathBuf;

/// A guest with one vCPU.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// ELF kernel with a PVH note.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// RAM in MiB.
    pub ram_mib: u64,
    /// A disk.
    pub disk: Option<DiskSpec>,
    /// A NIC.
    pub nic: Option<NicSpec>,
    /// A source of random numbers.
    pub rng: bool,
    /// Where it begins.
    pub origin: Origin,
}

/// Where a guest begins.
#[derive(Clone, Debug)]
pub enum Origin {
    /// At its kernel's first instruction.
    Boot {
        /// Socket on which the VMM listens for commands.
        control: Option<PathBuf>,
    },
    /// Where a snapshot was made; the directory of its files.
    Snapshot(PathBuf),
}

/// A disk on a raw image.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// The image.
    pub path: PathBuf,
    /// Past the host's page cache.
    pub direct: bool,
}

/// A NIC on the pod's network.
#[derive(Clone, Debug)]
pub struct NicSpec {
    /// Words that run a program in the pod.
    pub wrapper: Vec<String>,
    /// The TAP to use; podvisor makes its own.
    pub tap: String,
    /// Address of the guest's card; podvisor's guest has the pod's.
    pub mac: String,
}

impl GuestSpec {
    /// The bare-metal guest with 128 MiB.
    pub fn payload(cmdline: &str) -> Self {
        Self {
            kernel: podvisor_tests::guest::payload(),
            initrd: None,
            cmdline: cmdline.to_owned(),
            ram_mib: 128,
            disk: None,
            nic: None,
            rng: false,
            origin: Origin::Boot { control: None },
        }
    }

    /// The test Linux with 256 MiB, up to its init.
    pub fn linux() -> Self {
        Self {
            kernel: podvisor_tests::guest::vmlinux(),
            initrd: Some(podvisor_tests::guest::initrd()),
            cmdline: podvisor_tests::guest::linux_cmdline("hello"),
            ram_mib: 256,
            ..Self::payload("")
        }
    }
}
