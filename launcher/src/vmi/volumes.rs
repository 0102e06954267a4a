//! `spec.volumes[]`.

mod cloud_init;
mod files;

use super::reader::{Node, Object};

pub use self::cloud_init::{CloudInit, CloudInitData, CloudInitLayout};
pub(super) use self::files::MAX_LABEL;
pub use self::files::{Files, FilesKind};

/// Where a disk's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Name, shared with its disk.
    pub name: String,
    /// Kind of volume.
    pub source: VolumeSource,
    /// Refuse writes.
    pub read_only: bool,
    /// Under KubeVirt it comes and goes while the machine runs.
    pub hotpluggable: bool,
}

/// Kinds of volumes. What is made of files is read-only: nobody would keep what a guest writes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// A PersistentVolumeClaim or DataVolume: `disk.img` on a file system, or a block device.
    Claim,
    /// A raw image on the node, by its file name.
    HostDisk {
        /// Last component of `hostDisk.path`.
        file: String,
        /// Size in bytes of an image to make if there is none.
        create: Option<u64>,
    },
    /// The image of a container, which is not written to.
    ContainerDisk {
        /// Position of the volume in `spec.volumes`, by which KubeVirt names its file.
        index: usize,
    },
    /// A claim that is not written to.
    Ephemeral,
    /// A disk that is empty at the start.
    EmptyDisk {
        /// Its size.
        bytes: u64,
    },
    /// A disk for cloud-init.
    CloudInit(CloudInit),
    /// A disk of files.
    Files(Files),
    /// A disk of the host's metrics, which virt-handler writes.
    Metrics,
}

/// Longest name of a file.
const NAME_MAX: usize = 255;

type ReadSource = fn(&Node<'_>) -> Option<(VolumeSource, bool)>;

/// The sources that there are; exactly one is accepted.
const SOURCES: [(&str, ReadSource); 14] = [
    ("persistentVolumeClaim", read_claim),
    ("dataVolume", read_data_volume),
    ("hostDisk", read_host_disk),
    ("containerDisk", read_container_disk),
    ("ephemeral", read_ephemeral),
    ("emptyDisk", read_empty_disk),
    ("cloudInitNoCloud", |node| {
        read_cloud_init(node, CloudInitLayout::NoCloud)
    }),
    ("cloudInitConfigDrive", |node| {
        read_cloud_init(node, CloudInitLayout::ConfigDrive)
    }),
    ("configMap", |node| read_files(files::read_config_map(node))),
    ("secret", |node| read_files(files::read_secret(node))),
    ("downwardAPI", |node| {
        read_files(files::read_downward_api(node))
    }),
    ("serviceAccount", |node| {
        read_files(files::read_service_account(node))
    }),
    ("sysprep", |node| read_files(files::read_sysprep(node))),
    ("containerPath", |node| {
        read_files(files::read_container_path(node))
    }),
];

/// Metrics of the host: a disk of them where virt-handler writes it.
const METRICS: &str = "downwardMetrics";

/// Volumes that no disk is made of.
const NO_DISKS: [&str; 2] = [METRICS, "memoryDump"];

/// Reads the volumes, and the names of those that are left out.
pub(super) fn read(items: &[Node<'_>]) -> (Vec<Volume>, Vec<String>) {
    let mut volumes: Vec<Volume> = Vec::new();
    let mut left_out = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let volume = item.object();
        let name = volume.require("name", "the name of its disk");
        // What the guest does not see.
        let has_disk = |field: &str| field == METRICS && item.is_of_cluster();
        let others = NO_DISKS
            .iter()
            .filter_map(|field| Some((*field, volume.get(field)?.object())));
        let other = others.map(|(field, _)| field).next();
        let mut source = match other {
            Some(field) => {
                if SOURCES.iter().any(|(field, _)| volume.get(field).is_some()) {
                    item.error_found("more than one source", "one source");
                }
                has_disk(field).then_some((VolumeSource::Metrics, true))
            }
            None => read_source(item, &volume),
        };
        let name = name.and_then(|node| Some((node.label()?, node)));
        let is_taken = |name: &str| {
            volumes.iter().any(|volume| volume.name == name)
                || left_out.iter().any(|other| other == name)
        };
        if let Some((_, node)) = name.as_ref().filter(|(name, _)| is_taken(name)) {
            node.error("each volume name once");
            continue;
        }
        if other.is_some_and(|field| !has_disk(field)) {
            left_out.extend(name.map(|(name, _)| name.to_owned()));
            continue;
        }
        if let Some((VolumeSource::ContainerDisk { index: position }, _)) = &mut source {
            *position = index;
        }
        let (Some((name, _)), Some((source, read_only))) = (name, source) else {
            continue;
        };
        let is_seed = |source: &VolumeSource| matches!(source, VolumeSource::CloudInit(_));
        if is_seed(&source) && volumes.iter().any(|volume| is_seed(&volume.source)) {
            item.error_found("a second volume for cloud-init", "one, as in KubeVirt");
        }
        volumes.push(Volume {
            name: name.to_owned(),
            source,
            read_only,
            hotpluggable: is_hotpluggable(&volume),
        });
    }
    (volumes, left_out)
}

/// The source and whether it is read-only.
fn read_source(item: &Node<'_>, volume: &Object<'_>) -> Option<(VolumeSource, bool)> {
    let given = SOURCES
        .iter()
        .filter_map(|(field, read)| Some(read(&volume.get(field)?)));
    let mut given = given.collect::<Vec<_>>().into_iter();
    let accepted = || {
        let names = SOURCES.map(|(field, _)| field);
        format!("one of {}", names.join(", "))
    };
    match (given.next(), given.count()) {
        (Some(source), 0) => source,
        (Some(_), _) => {
            item.error_found("more than one source", accepted());
            None
        }
        (None, _) => {
            if !volume.is_explained() {
                item.error_found("no source", accepted());
            }
            None
        }
    }
}

fn read_claim(node: &Node<'_>) -> Option<(VolumeSource, bool)> {
    let claim = node.object();
    require_name(&claim, "claimName", "the name of a PersistentVolumeClaim");
    let read_only = claim.boolean("readOnly").unwrap_or(false);
    Some((VolumeSource::Claim, read_only))
}

fn read_data_volume(node: &Node<'_>) -> Option<(VolumeSource, bool)> {
    require_name(&node.object(), "name", "the name of a DataVolume");
    Some((VolumeSource::Claim, false))
}

fn is_hotpluggable(volume: &Object<'_>) -> bool {
    let claims = ["persistentVolumeClaim", "dataVolume"].into_iter();
    let mut claims = claims.filter_map(|field| volume.get(field));
    claims.any(|claim| claim.object().boolean_or("hotpluggable", false))
}

fn read_cloud_init(node: &Node<'_>, layout: CloudInitLayout) -> Option<(VolumeSource, bool)> {
    Some((
        VolumeSource::CloudInit(cloud_init::read(node, layout)),
        true,
    ))
}

fn read_files(files: Files) -> Option<(VolumeSource, bool)> {
    Some((VolumeSource::Files(files), true))
}

/// The pod has it mounted under the volume's name, so its own name is only checked for.
fn require_name(source: &Object<'_>, field: &'static str, accepted: &str) {
    if let Some(name) = source.require(field, accepted) {
        name.string();
    }
}

fn read_host_disk(node: &Node<'_>) -> Option<(VolumeSource, bool)> {
    let disk = node.object();
    let kind = disk.require("type", "Disk, DiskOrCreate");
    let kind = kind.and_then(|kind| kind.word());
    let capacity = disk.get("capacity").and_then(|node| capacity(&node));
    let create = capacity.filter(|_| kind == Some("DiskOrCreate"));
    let path = disk.require("path", "the absolute path of an image")?;
    let file = path.string()?;
    let Some(file) = base_name(file) else {
        path.error("the absolute path of an image");
        return None;
    };
    let file = file.to_owned();
    Some((VolumeSource::HostDisk { file, create }, false))
}

fn read_container_disk(node: &Node<'_>) -> Option<(VolumeSource, bool)> {
    let disk = node.object();
    require_name(&disk, "image", "the name of a container's image");
    if let Some(path) = disk.get("path") {
        path.string();
    }
    // Its reader knows the position.
    Some((VolumeSource::ContainerDisk { index: 0 }, false))
}

fn read_ephemeral(node: &Node<'_>) -> Option<(VolumeSource, bool)> {
    let claim = "persistentVolumeClaim";
    let claim = node.object().require(claim, "a PersistentVolumeClaim")?;
    let claim = claim.object();
    require_name(&claim, "claimName", "the name of a PersistentVolumeClaim");
    // What the guest writes does not go there anyway.
    claim.boolean("readOnly");
    Some((VolumeSource::Ephemeral, false))
}

fn read_empty_disk(node: &Node<'_>) -> Option<(VolumeSource, bool)> {
    let node = node.object().require("capacity", "its size")?;
    let bytes = capacity(&node)?;
    Some((VolumeSource::EmptyDisk { bytes }, false))
}

/// Sizes of new disks are whole MiB, as in KubeVirt, and end where files do.
const MIB: u64 = 1 << 20;
const MAX_CAPACITY: u64 = 64 << 40;

fn capacity(node: &Node<'_>) -> Option<u64> {
    let bytes = node.quantity()?.value() / MIB * MIB;
    if !(MIB..=MAX_CAPACITY).contains(&bytes) {
        node.error("1Mi to 64Ti");
        return None;
    }
    Some(bytes)
}

/// The last component of an absolute path, if it can be looked up in another directory.
pub(super) fn base_name(path: &str) -> Option<&str> {
    let (_, name) = path.strip_prefix('/').and(path.rsplit_once('/'))?;
    let good = !matches!(name, "" | "." | "..")
        && name.len() <= NAME_MAX
        && !name.chars().any(char::is_control);
    good.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::base_name;

    #[test]
    fn base_names_stay_in_their_directory() {
        assert_eq!(base_name("/boot/vmlinuz"), Some("vmlinuz"));
        assert_eq!(base_name("/vmlinuz"), Some("vmlinuz"));
        for bad in [
            "", "/", "vmlinuz", "a/b", "/boot/", "/boot/..", "/.", "/a\nb", "/a\0",
        ] {
            assert_eq!(base_name(bad), None, "{bad:?}");
        }
    }
}
