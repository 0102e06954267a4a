//! What can be missing on a host, and the way out.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;
use vmm::kvm::KvmError;

use super::HostDeviceError;
use crate::opener::OpenError;
use crate::plan::{HostDeviceList, HostDeviceSource};

/// A resource of the host is missing or cannot be used.
#[derive(Debug, Error)]
pub enum ResourceError {
    /// No KVM.
    #[error("Cannot open /dev/kvm")]
    Kvm(#[source] io::Error),
    /// KVM does not say what it can do.
    #[error("/dev/kvm is not usable")]
    KvmCall(#[source] KvmError),
    /// No vsock.
    #[error("spec.domain.devices.autoattachVSOCK: cannot open /dev/vhost-vsock")]
    Vsock(#[source] io::Error),
    /// A guest cannot have this address.
    #[error("spec.domain.devices.autoattachVSOCK: the guest cannot have the address (CID) {cid}")]
    VsockCid {
        /// The address.
        cid: u32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A device of the host that the guest cannot have.
    #[error("{list} {name:?}")]
    HostDevice {
        /// Where in the VMI it is.
        list: HostDeviceList,
        /// Its name there.
        name: String,
        /// The cause.
        #[source]
        source: HostDeviceError,
    },
    /// Devices of the host reach all of guest RAM, which is locked for that.
    #[error(
        "spec.domain.devices: devices of the host need {} MiB of locked memory, and the limit is {} KiB",
        .wanted.div_ceil(1 << 20),
        .limit >> 10
    )]
    LockedMemory {
        /// What the vm process may lock, bytes.
        wanted: u64,
        /// What it is allowed to, bytes.
        limit: u64,
    },
    /// More descriptors than a process may have.
    #[error(
        "spec.domain.devices: {queues} queues of {devices} devices need {wanted} descriptors, and the limit on open \
         files is {limit}"
    )]
    Descriptors {
        /// Devices of the machine.
        devices: usize,
        /// Their virtqueues.
        queues: u32,
        /// Descriptors that the vm process needs.
        wanted: u64,
        /// Those that it may have.
        limit: u64,
    },
    /// More threads than there may be.
    #[error(
        "spec.domain: {vcpus} vCPUs (cpu) and {workers} workers of devices need {wanted} threads in all, and {which} \
         {limit}"
    )]
    Threads {
        /// vCPUs of the machine.
        vcpus: u32,
        /// Threads that serve its devices.
        workers: u32,
        /// Threads that the vm process needs.
        wanted: u64,
        /// What limits them.
        which: &'static str,
        /// Those that it may have.
        limit: u64,
    },
    /// Not enough huge pages.
    #[error(
        "Guest RAM needs {wanted} huge pages of {} MiB, of which the host has {free} free",
        .page_size >> 20
    )]
    HugePages {
        /// Pages the guest needs.
        wanted: u64,
        /// Pages there are.
        free: u64,
        /// Their size in bytes.
        page_size: u64,
    },
    /// A file cannot be opened.
    #[error("Cannot open the {what} {path:?}")]
    Open {
        /// What the file is.
        what: String,
        /// Where.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file cannot be opened below the directories in which files may be.
    #[error(transparent)]
    Beneath(#[from] OpenError),
    /// A volume is at none of the places where it could be.
    #[error("Volume {name:?} is not there: looked for {candidates:?}")]
    NoVolume {
        /// Name of the volume.
        name: String,
        /// Places looked at.
        candidates: Vec<PathBuf>,
    },
    /// A path is a directory, a socket, …
    #[error("The {what} {path:?} is {found}, not {accepted}")]
    WrongKind {
        /// What the file should be.
        what: String,
        /// Where.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What could be.
        accepted: &'static str,
    },
    /// Another process has the image locked.
    #[error("The disk image {path:?} of volume {name:?} is in use by another process or disk")]
    Locked {
        /// Name of the volume.
        name: String,
        /// Where the image is.
        path: PathBuf,
    },
    /// An image without a byte.
    #[error("The disk image {path:?} of volume {name:?} is empty")]
    Empty {
        /// Name of the volume.
        name: String,
        /// Where the image is.
        path: PathBuf,
    },
    /// A qcow2 image is where a raw one should be.
    #[error("The disk image {path:?} of volume {name:?} is a qcow2 image, not a raw one")]
    NotRaw {
        /// Name of the volume.
        name: String,
        /// Where the image is.
        path: PathBuf,
    },
    /// An image cannot be used.
    #[error("The disk image {path:?} of volume {name:?} cannot be used: {why}")]
    Image {
        /// Name of the volume.
        name: String,
        /// Where the image is.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// There is no room for what is gone with the machine.
    #[error("Cannot make a temporary image for volume {name:?} in the first of {directories:?}")]
    Scratch {
        /// Name of the volume.
        name: String,
        /// Places that were looked at.
        directories: Vec<PathBuf>,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A directory does not have what a volume is made of.
    #[error("The directory {path:?} of volume {name:?} has no file {wanted}")]
    Lacks {
        /// Name of the volume.
        name: String,
        /// Where the directory is.
        path: PathBuf,
        /// The file.
        wanted: String,
    },
    /// The image of a volume's files cannot be made.
    #[error("Cannot make the disk of volume {name:?}")]
    Iso {
        /// Name of the volume.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// `cache: none` was asked for and cannot be had.
    #[error(
        "The disk image {path:?} of volume {name:?} cannot be used without the host's page cache"
    )]
    DirectIo {
        /// Name of the volume.
        name: String,
        /// Where the image is.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Block sizes are to be the volume's.
    #[error(
        "Cannot tell the block sizes of the disk image {path:?} of volume {name:?} (blockSize.matchVolume)"
    )]
    BlockSizes {
        /// Name of the volume.
        name: String,
        /// Where the image is.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A listening socket cannot be made.
    #[error("Cannot listen on the {what} socket {path:?}")]
    Listen {
        /// What the socket is for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A debugger could not come.
    #[error("Cannot listen for a debugger on {address}")]
    ListenTcp {
        /// Where.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The architecture has none.
    #[error("There is no debugger for guests of 64-bit Arm yet")]
    NoDebugger,
    /// The terminal or the standard streams cannot be used as console.
    #[error("Cannot use standard input and output as console")]
    Terminal(#[source] io::Error),
}

impl ResourceError {
    pub(super) fn of_device(device: &HostDeviceSource, source: HostDeviceError) -> Self {
        Self::HostDevice {
            list: device.list,
            name: device.name.clone(),
            source,
        }
    }

    /// The way out, as a sentence.
    pub fn way_out(&self) -> &'static str {
        match self {
            Self::Kvm(source) if source.kind() == io::ErrorKind::NotFound => {
                "Enable virtualization in the host's firmware and load the kernel module kvm_intel \
                 or kvm_amd; in a pod, request the device devices.kubevirt.io/kvm."
            }
            Self::Kvm(_) => {
                "Give this user read and write access to it, e.g. by the group kvm; in a pod, \
                 request the device devices.kubevirt.io/kvm."
            }
            Self::Vsock(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                "Give this user read and write access to it, e.g. by the group kvm; in a pod, request the device \
                 devices.kubevirt.io/vhost-vsock."
            }
            Self::Vsock(_) => {
                "Load the kernel module vhost_vsock; in a pod, request the device devices.kubevirt.io/vhost-vsock, as KubeVirt \
                 does with its feature gate VSOCK; or leave the field out."
            }
            Self::VsockCid { .. } => {
                "End the machine that has it, or say another one by --vsock-cid; in a cluster virt-controller chooses."
            }
            Self::HostDevice { source, .. } => source.way_out(),
            Self::LockedMemory { .. } => {
                "Raise the limit (ulimit -l; LimitMEMLOCK= of the container runtime), or run podvisor with the right to \
                 (CAP_SYS_RESOURCE)."
            }
            Self::KvmCall(_) => "Check that it is the device of this kernel's KVM.",
            Self::Descriptors { .. } => {
                "Raise the limit (ulimit -n; LimitNOFILE= of the container runtime), take fewer disks and \
                 interfaces, or leave out blockMultiQueue and networkInterfaceMultiqueue."
            }
            Self::Threads { .. } => {
                "Raise the limit on processes (ulimit -u, or pids.max of the pod's control group), take fewer vCPUs, \
                 disks and interfaces, or leave out blockMultiQueue and networkInterfaceMultiqueue."
            }
            Self::HugePages { .. } => {
                "Reserve more in /sys/kernel/mm/hugepages, or leave out \
                 spec.domain.memory.hugepages."
            }
            Self::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "Give this user access to it."
            }
            Self::Open { source, .. } if source.raw_os_error() == Some(ELOOP) => {
                "Symbolic links inside of volumes are not followed; name the file on the command \
                 line."
            }
            Self::Beneath(_) => "Put the file below one of these directories.",
            Self::Open { .. } => "Check that the path is right and mounted in the pod.",
            Self::NoVolume { .. } => {
                "Mount it in the pod, or say where it is with --volume NAME=PATH."
            }
            Self::WrongKind { .. } => "Name the right path on the command line.",
            Self::NotRaw { .. } => {
                "Convert it by `qemu-img convert -O raw`, or name it on the command line: \
                 --volume NAME=qcow2:PATH."
            }
            Self::Image { .. } => "Convert or repair it with qemu-img, or use another image.",
            Self::Scratch { .. } => {
                "Set TMPDIR to a directory with room that this user can write to."
            }
            Self::Lacks { .. } => "Put it there, under this name.",
            Self::Iso { .. } => "It is made in memory, which counts for the pod's limit.",
            Self::Empty { .. } => {
                "Give the image the size of the disk, e.g. by `truncate --size=1G`, or copy one to it."
            }
            Self::Locked { .. } => "Stop the machine that uses it, or use a copy of the image.",
            Self::DirectIo { .. } => {
                "Leave out `cache: none`, or take the block size of the storage by blockSize.matchVolume."
            }
            Self::BlockSizes { .. } => "Give them in blockSize.custom.",
            Self::Listen { .. } => {
                "Choose a path in a directory that this user can write to and that no other \
                 process listens on."
            }
            Self::ListenTcp { .. } => "Choose another port, or --gdb unix:PATH.",
            Self::NoDebugger => "Leave out --gdb.",
            Self::Terminal(_) => "Choose another --console.",
        }
    }
}

/// Not in `io::ErrorKind` on stable Rust.
const ELOOP: i32 = rustix::io::Errno::LOOP.raw_os_error();
