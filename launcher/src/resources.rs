//! Opens everything a machine needs; after this, no path matters any more.
//!
//! Called before the pod's network is touched, so that a missing disk changes nothing.

mod block_sizes;
mod boot;
mod capture;
mod console;
mod debugger;
mod disk;
mod error;
mod file;
mod host_device;
mod iso;
mod layers;
mod locked;
mod memory;
mod metrics;
mod nodes;
mod scratch;
pub mod snapshot;
mod socket;
mod threads;
mod vsock;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use devices::virtio::block::{BlockOptions, CacheMode, ImageFormat};
use devices::virtio::registry::AnyOptions;
use devices::virtio::spec::DeviceOptions;
use rustix::fs::OFlags;
use rustix::process::{Resource, getrlimit};
use vmm::arch::cpu::HostCpu;
use vmm::control::FdRole;
use vmm::plan::MachinePlan;

pub use self::block_sizes::BlockSizes;
pub use self::boot::{BootDiskError, BootReader, DiskKernel};
pub use self::capture::open as open_capture;
pub use self::console::{Console, ConsoleTarget, open_console};
pub use self::debugger::{DebuggerTarget, open_debugger};
pub use self::disk::open as open_image;
pub use self::error::ResourceError;
pub use self::file::{Access, Anywhere, Kind, Places, Unfit, fits, open_below, settle};
pub use self::host_device::{ClaimError, HostDeviceError, probe as probe_vfio};
pub use self::iso::read as read_iso;
pub use self::locked::raise as raise_locked_memory;
pub(crate) use self::locked::wanted as locked_memory;
pub use self::scratch::{directory as scratch_directory, file as scratch_file};
pub use self::socket::{ListenSocket, bind_lasting};
pub use self::vsock::open_device as open_vhost_vsock;

use crate::plan::{
    Asked, BaseFormat, BootFile, DiskSource, ImagePath, ImageSource, LaunchPlan, Overlay, PORTS,
    PortTarget,
};

/// Open descriptors and what each is, for the vm process.
#[derive(Debug, Default)]
pub struct Descriptors {
    roles: Vec<FdRole>,
    fds: Vec<OwnedFd>,
}

impl Descriptors {
    /// Adds a descriptor.
    pub fn push(&mut self, role: FdRole, fd: impl Into<OwnedFd>) {
        self.roles.push(role);
        self.fds.push(fd.into());
    }

    /// Adds all of `more`.
    pub fn append(&mut self, mut more: Self) {
        self.roles.append(&mut more.roles);
        self.fds.append(&mut more.fds);
    }

    /// What each descriptor is, in the order of [`Descriptors::fds`].
    pub fn roles(&self) -> &[FdRole] {
        &self.roles
    }

    /// The descriptors.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd).collect()
    }
}

/// Opens kernel, initial RAM disk or firmware, files for packets, disks, devices of the host and the kernel's part of vsock,
/// makes disks of files, and settles what was left open: cache mode and block sizes of disks, the guest's address.
pub fn open(plan: &mut LaunchPlan) -> Result<Descriptors, ResourceError> {
    let mut descriptors = Descriptors::default();
    memory::check(&plan.machine.memory)?;
    check_descriptors(&plan.machine)?;
    threads::check(&plan.machine)?;
    locked::check(&plan.machine)?;
    nodes::arrange(&mut plan.machine);
    if let Some(kernel) = &plan.kernel {
        let name = format!("{:?}", kernel.path);
        let file = file::open_boot_file("kernel", kernel)?;
        descriptors.push(FdRole::Kernel { name }, file);
    }
    if let Some(initrd) = &plan.initrd {
        descriptors.push(
            FdRole::Initrd,
            file::open_boot_file("initial RAM disk", initrd)?,
        );
    }
    if let Some(firmware) = &plan.firmware {
        let name = format!("{:?}", firmware.path);
        let file = file::open_boot_file("firmware", firmware)?;
        descriptors.push(FdRole::Firmware { name }, file);
    }
    for nic in &plan.nics {
        for file in nic
            .capture
            .as_deref()
            .map(capture::open)
            .transpose()?
            .into_iter()
            .flatten()
        {
            let name = nic.device.clone();
            descriptors.push(FdRole::Device { name }, file);
        }
    }
    for device in &mut plan.machine.devices {
        if let AnyOptions::Vsock(options) = &mut device.options {
            let name = device.name.clone();
            descriptors.push(FdRole::Device { name }, vsock::open(options)?);
        }
        let is_source = |source: &&DiskSource| source.device == device.name;
        if let AnyOptions::Block(options) = &mut device.options
            && let Some(source) = plan.disks.iter().find(is_source)
        {
            let images = open_disk(options, source)?;
            let name = device.name.clone();
            for image in images {
                descriptors.push(FdRole::Device { name: name.clone() }, image);
            }
        }
    }
    host_device::open(&plan.host_devices, &mut descriptors)?;
    Ok(descriptors)
}

/// A guest would find out late, by devices that do not start.
fn check_descriptors(plan: &MachinePlan) -> Result<(), ResourceError> {
    let wanted = plan.descriptors();
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if wanted <= limit {
        return Ok(());
    }
    Err(ResourceError::Descriptors {
        devices: plan.devices.len() + plan.host_devices.len(),
        queues: plan
            .devices
            .iter()
            .map(|device| device.options.queues())
            .sum(),
        wanted,
        limit,
    })
}

/// Opens a disk that somebody wants to look at: its files, the top one first, and their formats.
pub fn open_to_inspect(path: &Path) -> Result<(Vec<File>, Vec<ImageFormat>), ResourceError> {
    let access = file::Access {
        kind: Kind::Disk,
        write: false,
        follow: true,
    };
    let layers = layers::to_inspect(file::open("disk", path, access)?, path)?;
    Ok((layers.files, layers.formats))
}

/// The same of an image that nobody may write to as long as the files are open.
pub fn open_unchanged(path: &Path) -> Result<(Vec<File>, Vec<ImageFormat>), ResourceError> {
    let (files, formats) = open_to_inspect(path)?;
    if let Some(top) = files.first() {
        // What lies below it was locked as it was opened.
        disk::lock(&Anywhere, &path.to_string_lossy(), top, path, true)?;
    }
    Ok((files, formats))
}

/// Reads a file of at most `most` bytes that somebody else has put there: nothing else is waited for.
pub fn read_file(what: &str, path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let access = file::Access {
        kind: Kind::File,
        write: false,
        follow: true,
    };
    let file = file::open(what, path, access).map_err(|error| match error {
        ResourceError::Open { source, .. } => source,
        error => io::Error::other(error),
    })?;
    let mut bytes = Vec::new();
    let len = file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    match len as u64 <= most {
        true => Ok(bytes),
        false => Err(io::ErrorKind::FileTooLarge.into()),
    }
}

/// Opens the kernel's file with symbols, as the user named it.
pub fn open_symbols(path: &Path) -> Result<File, ResourceError> {
    let path = path.to_owned();
    file::open_boot_file(
        "symbols",
        &BootFile {
            path,
            trusted: true,
        },
    )
}

/// Opens the image of a disk that is at one of `places`, a qcow2 image with all that it lies over, and says in the
/// options what it is.
pub fn open_files(
    places: &impl Places,
    volume: &str,
    options: &mut BlockOptions,
    asked: Asked,
    image: &ImagePath,
    is_qcow2: bool,
) -> Result<Vec<File>, ResourceError> {
    if is_qcow2 {
        return Ok(layers::qcow2(places, volume, options, asked, image)?.files);
    }
    Ok(vec![disk::open(places, volume, options, asked, image)?])
}

/// Makes an empty overlay over the image of a container that is at one of the places `base`, and says in the options what
/// its files are.
pub fn open_overlay(
    places: &impl Places,
    volume: &str,
    options: &mut BlockOptions,
    asked: Asked,
    base: ImagePath,
) -> Result<Vec<File>, ResourceError> {
    let overlay = Overlay {
        base,
        format: BaseFormat::Probed,
        file: None,
        bytes: None,
    };
    Ok(layers::overlay(places, volume, options, asked, &overlay)?.files)
}

/// Opens or makes the files of a disk, and says in its options what they are.
fn open_disk(options: &mut BlockOptions, source: &DiskSource) -> Result<Vec<File>, ResourceError> {
    let (volume, asked) = (&*source.device, source.asked);
    let layers = match &source.image {
        ImageSource::Raw(image) => {
            return open_files(&Anywhere, volume, options, asked, image, false);
        }
        ImageSource::Qcow2(image) => {
            return open_files(&Anywhere, volume, options, asked, image, true);
        }
        ImageSource::Iso(plan) => {
            options.cache = CacheMode::Writeback;
            return Ok(vec![iso::make(volume, plan)?]);
        }
        ImageSource::Overlay(overlay) => {
            layers::overlay(&Anywhere, volume, options, asked, overlay)?
        }
        ImageSource::Metrics(image) => {
            metrics::make(volume, image)?;
            return open_files(&Anywhere, volume, options, asked, image, false);
        }
        ImageSource::Empty { bytes } => layers::empty_disk(volume, options, asked, *bytes)?,
    };
    Ok(layers.files)
}

/// Listens on the sockets of ports; they go away with what this returns.
pub fn open_ports(
    plan: &LaunchPlan,
    descriptors: &mut Descriptors,
) -> Result<Vec<ListenSocket>, ResourceError> {
    let mut sockets = Vec::new();
    for target in &plan.ports {
        let name = PORTS.to_owned();
        let path = match target {
            PortTarget::Unix(path) => path,
            PortTarget::File(path) => {
                let file = console::open_output("file of the virtio console", path)?;
                descriptors.push(FdRole::Device { name }, file);
                continue;
            }
        };
        let socket = ListenSocket::bind("port", path)?;
        let listener = socket.try_clone().map_err(|source| ResourceError::Listen {
            what: "port",
            path: path.clone(),
            source,
        })?;
        descriptors.push(FdRole::Device { name }, listener);
        sockets.push(socket);
    }
    Ok(sockets)
}

/// Asks the hypervisor what it can show guests of the host's processor.
pub fn host_cpu(kvm: OwnedFd) -> Result<HostCpu, ResourceError> {
    HostCpu::ask(kvm.as_fd()).map_err(ResourceError::KvmCall)
}

/// Opens the hypervisor.
pub fn open_kvm() -> Result<OwnedFd, ResourceError> {
    rustix::fs::open(
        "/dev/kvm",
        OFlags::RDWR | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|errno| ResourceError::Kvm(errno.into()))
}
