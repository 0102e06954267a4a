//! Disks: what each is, and where its data is.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use devices::virtio::block::{BlockOptions, CacheMode};
use serde::Serialize;

use super::iso::{self, IsoPlan};
use super::{PlanOptions, queues};
use crate::vmi::{Disk, FilesKind, Report, Vmi, Volume, VolumeSource};

/// Where KubeVirt mounts volumes with a file system.
const VOLUME_DIR: &str = "/var/run/kubevirt-private/vmi-disks";

/// Where KubeVirt puts the files of container disks.
const CONTAINER_DISK_DIR: &str = "/var/run/kubevirt/container-disks";

/// Where virt-handler writes the host's metrics.
const METRICS_FILE: &str = "/var/run/kubevirt-private/downwardapi-disks/vhostmd0";

/// Before a path on the command line that is a qcow2 image.
const QCOW2: &str = "qcow2:";

/// Where a disk's data is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskSource {
    /// Name of its device in `machine`.
    pub device: String,
    /// Its image.
    #[serde(flatten)]
    pub image: ImageSource,
    /// What is settled when it is open.
    #[serde(flatten)]
    pub asked: Asked,
}

/// What of a disk may follow from its image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// Cache mode; if none, O_DIRECT where it works, else writethrough. The machine plan says `none` until the image is
    /// open.
    pub cache: Option<CacheMode>,
    /// Blocks are as large as those of what the image is on. The machine plan says 512 bytes until then.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub match_volume: bool,
}

impl Asked {
    fn of(disk: &Disk) -> Self {
        Self {
            cache: disk.cache,
            match_volume: disk.match_volume,
        }
    }
}

/// A disk that comes while the machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaterDisk {
    /// Its name and its volume's.
    pub name: String,
    /// Its device.
    pub options: BlockOptions,
    /// What is settled when its image is open.
    pub asked: Asked,
    /// Its image is a container's, which is not written to.
    pub overlay: bool,
}

/// The disks of a VMI whose volumes come and go.
pub fn later_disks(vmi: &Vmi) -> Vec<LaterDisk> {
    let disk = |disk: &Disk| {
        let mut volumes = vmi.spec.volumes.iter();
        let volume = volumes.find(|volume| volume.name == disk.name)?;
        volume.hotpluggable.then(|| LaterDisk {
            name: disk.name.clone(),
            options: block_options(vmi, disk, volume),
            asked: Asked::of(disk),
            overlay: matches!(volume.source, VolumeSource::ContainerDisk { .. }),
        })
    };
    vmi.spec.devices.disks.iter().filter_map(disk).collect()
}

/// What the launcher opens or makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum ImageSource {
    /// A raw image or a block device.
    Raw(ImagePath),
    /// A qcow2 image, written to where it is.
    Qcow2(ImagePath),
    /// A new image over one that is not written to; it is gone with the machine.
    Overlay(Overlay),
    /// A new image with nothing in it, which is gone with the machine.
    Empty {
        /// Size of the disk.
        bytes: u64,
    },
    /// A file system made of files, which the guest cannot write to.
    Iso(IsoPlan),
    /// A file for the host's metrics, which is made if it is not there; the guest cannot write to it.
    Metrics(ImagePath),
}

/// An image that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImagePath {
    /// Places to look at; the first that exists is taken.
    pub candidates: Vec<PathBuf>,
    /// The path was named on the command line, so a symbolic link is what the user meant.
    pub trusted: bool,
    /// Make a raw image of so many bytes at the first place if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create: Option<u64>,
}

/// What lies under a new image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overlay {
    /// Where it is.
    #[serde(flatten)]
    pub base: ImagePath,
    /// What it may be.
    pub format: BaseFormat,
    /// The new image, an empty file until then; without it, one that nobody else sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// How large the disk is, bytes, if not as large as what lies under it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// Formats of what lies under a new image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BaseFormat {
    /// A raw image or a block device.
    Raw,
    /// A qcow2 image, which may lie over others.
    Qcow2,
    /// A raw image or a qcow2 image that lies over no other.
    Probed,
}

impl ImageSource {
    /// Where something is looked for.
    pub(crate) fn places(&self) -> &[PathBuf] {
        match self {
            Self::Raw(image) | Self::Qcow2(image) | Self::Metrics(image) => &image.candidates,
            Self::Overlay(overlay) => &overlay.base.candidates,
            Self::Empty { .. } => &[],
            Self::Iso(iso) => iso.places(),
        }
    }
}

pub(super) fn block_options(vmi: &Vmi, disk: &Disk, volume: &Volume) -> BlockOptions {
    let read_only = disk.read_only || volume.read_only;
    let block_size = disk.block_size;
    BlockOptions {
        serial: disk.serial.clone(),
        read_only,
        cache: disk.cache.unwrap_or(CacheMode::None),
        logical_block_size: block_size.map_or(512, |size| size.logical),
        physical_block_size: block_size.map_or(512, |size| size.physical),
        discard_granularity: block_size.and_then(|size| size.discard_granularity),
        discard: !read_only,
        error_policy: disk.error_policy,
        queues: queues(vmi, vmi.spec.devices.block_multi_queue),
        layers: Vec::new(),
    }
}

pub(super) fn source(
    vmi: &Vmi,
    disk: &Disk,
    volume: &Volume,
    device: &str,
    options: &PlanOptions,
) -> DiskSource {
    let named = options.volume(&volume.name);
    let name = &volume.name;
    let claim = || {
        vec![
            PathBuf::from(format!("{VOLUME_DIR}/{name}/disk.img")),
            PathBuf::from(format!("/dev/{name}")),
        ]
    };
    let read_only = disk.read_only || volume.read_only;
    let mut image = match &volume.source {
        VolumeSource::Claim => kept(claim(), named, None, read_only),
        VolumeSource::HostDisk { file, create } => {
            let place = PathBuf::from(format!("{VOLUME_DIR}/{name}/{file}"));
            kept(vec![place], named, *create, read_only)
        }
        VolumeSource::ContainerDisk { index } => {
            let place = PathBuf::from(format!("{CONTAINER_DISK_DIR}/disk_{index}.img"));
            over(vec![place], named, BaseFormat::Probed)
        }
        VolumeSource::Ephemeral => over(claim(), named, BaseFormat::Raw),
        VolumeSource::EmptyDisk { bytes } => ImageSource::Empty { bytes: *bytes },
        VolumeSource::CloudInit(seed) => {
            ImageSource::Iso(iso::cloud_init(vmi, name, seed, options, named))
        }
        VolumeSource::Files(files) => ImageSource::Iso(iso::files(name, files, named)),
        VolumeSource::Metrics => ImageSource::Metrics(at(vec![METRICS_FILE.into()], named, None)),
    };
    if let ImageSource::Overlay(overlay) = &mut image {
        overlay.file = options.overlay(name);
        overlay.bytes = options.size(name);
    }
    DiskSource {
        device: device.to_owned(),
        image,
        asked: Asked::of(disk),
    }
}

/// An image that is written to where it is. A qcow2 image that must not be is looked at through a new one,
/// since clusters may get a place when they are read.
fn kept(
    candidates: Vec<PathBuf>,
    named: Option<&Path>,
    create: Option<u64>,
    read_only: bool,
) -> ImageSource {
    match as_qcow2(named) {
        Some(path) if read_only => over(candidates, Some(path), BaseFormat::Qcow2),
        Some(path) => ImageSource::Qcow2(at(candidates, Some(path), None)),
        None => ImageSource::Raw(at(candidates, named, create)),
    }
}

/// A new image over one that is not written to.
fn over(candidates: Vec<PathBuf>, named: Option<&Path>, format: BaseFormat) -> ImageSource {
    let (named, format) = match as_qcow2(named) {
        Some(path) => (Some(path), BaseFormat::Qcow2),
        None => (named, format),
    };
    let base = at(candidates, named, None);
    ImageSource::Overlay(Overlay {
        base,
        format,
        file: None,
        bytes: None,
    })
}

/// The image that the command line names, or the first of `candidates`.
fn at(candidates: Vec<PathBuf>, named: Option<&Path>, create: Option<u64>) -> ImagePath {
    ImagePath {
        candidates: named.map_or(candidates, |path| vec![path.to_owned()]),
        trusted: named.is_some(),
        create,
    }
}

/// The path, if it is said to be that of a qcow2 image.
fn as_qcow2(named: Option<&Path>) -> Option<&Path> {
    let path = named?.as_os_str().as_bytes();
    let path = path.strip_prefix(QCOW2.as_bytes())?;
    Some(Path::new(OsStr::from_bytes(path)))
}

/// Whether the command line can say where a volume's data is.
fn takes_path(source: &VolumeSource) -> bool {
    match source {
        VolumeSource::CloudInit(seed) => iso::needs_secret(seed),
        VolumeSource::EmptyDisk { .. } => false,
        _ => true,
    }
}

/// Whether nothing but the command line says where a volume's data is.
pub(super) fn needs_path(source: &VolumeSource) -> bool {
    matches!(source, VolumeSource::Files(files) if files.kind == FilesKind::ContainerPath)
}

pub(super) fn check_options(vmi: &Vmi, options: &PlanOptions, report: &mut Report) {
    let volumes = &vmi.spec.volumes;
    for volume in volumes {
        let name = &volume.name;
        if needs_path(&volume.source) && options.volume(name).is_none() {
            report.error(
                "spec.volumes",
                format_args!("the path of {name:?}, a containerPath"),
                format_args!("one that the command line names: --volume {name}=DIR"),
            );
        }
    }
    let known: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    for (index, (name, _)) in options.volumes.iter().enumerate() {
        let mut before = options.volumes[..index].iter();
        if before.any(|(other, _)| other == name) {
            let found = format_args!("{name:?} twice");
            report.error("--volume", found, "each volume once");
        }
        let is_secret = vmi.spec.access_keys.iter().any(|keys| keys.secret == *name);
        match volumes.iter().find(|volume| volume.name == *name) {
            Some(volume) if !takes_path(&volume.source) => {
                let accepted = "no path for it: nothing of it is in a file";
                report.error("--volume", format_args!("{name:?}"), accepted);
            }
            None if !is_secret => {
                let accepted = format!("a name in spec.volumes ({})", known.join(", "));
                report.error("--volume", format_args!("{name:?}"), accepted);
            }
            _ => {}
        }
    }
    for (name, bytes) in &options.sizes {
        let kept = |volume: &&Volume| {
            volume.name == *name && !matches!(volume.source, VolumeSource::ContainerDisk { .. })
        };
        if volumes.iter().any(|volume| kept(&volume)) {
            let accepted = "no --persistent beside it: an image is not made larger";
            report.error("--size", bytes, accepted);
        }
    }
    for (name, _) in &options.overlays {
        if !known.contains(&name.as_str()) {
            let accepted = format!("a name in spec.volumes ({})", known.join(", "));
            report.error("--overlay", format_args!("{name:?}"), accepted);
        }
    }
}
