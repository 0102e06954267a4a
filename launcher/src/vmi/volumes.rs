//! `spec.volumes[]`.

use super::reader::{Node, Object};

/// Where a disk's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Name, shared with its disk.
    pub name: String,
    /// Kind of volume.
    pub source: VolumeSource,
    /// Refuse writes.
    pub read_only: bool,
}

/// Kinds of volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// A PersistentVolumeClaim or DataVolume: `disk.img` on a file system, or a block device.
    Claim,
    /// A raw image on the node, by its file name.
    HostDisk {
        /// Last component of `hostDisk.path`.
        file: String,
    },
}

/// Longest name of a file.
const NAME_MAX: usize = 255;

const SOURCES: &str = "one of persistentVolumeClaim, dataVolume, hostDisk";

pub(super) fn read(items: &[Node<'_>]) -> Vec<Volume> {
    let mut volumes: Vec<Volume> = Vec::new();
    for item in items {
        let volume = item.object();
        let name = volume.require("name", "the name of its disk");
        let source = read_source(item, &volume);
        let (Some(node), Some((source, read_only))) = (name, source) else {
            continue;
        };
        let Some(name) = node.label() else { continue };
        if volumes.iter().any(|volume| volume.name == name) {
            node.error("each volume name once");
            continue;
        }
        volumes.push(Volume {
            name: name.to_owned(),
            source,
            read_only,
        });
    }
    volumes
}

fn read_source(item: &Node<'_>, volume: &Object<'_>) -> Option<(VolumeSource, bool)> {
    let claim = volume.get("persistentVolumeClaim").map(|claim| {
        let claim = claim.object();
        require_name(&claim, "claimName", "the name of a PersistentVolumeClaim");
        Some((
            VolumeSource::Claim,
            claim.boolean("readOnly").unwrap_or(false),
        ))
    });
    let data_volume = volume.get("dataVolume").map(|volume| {
        require_name(&volume.object(), "name", "the name of a DataVolume");
        Some((VolumeSource::Claim, false))
    });
    let host_disk = volume
        .get("hostDisk")
        .map(|disk| Some((read_host_disk(&disk)?, false)));
    let mut sources = [claim, data_volume, host_disk].into_iter().flatten();
    match (sources.next(), sources.count()) {
        (Some(source), 0) => source,
        (Some(_), _) => {
            item.error_found("more than one source", SOURCES);
            None
        }
        (None, _) => {
            if !volume.is_explained() {
                item.error_found("no source", SOURCES);
            }
            None
        }
    }
}

/// The pod has it mounted under the volume's name, so its own name is only checked for.
fn require_name(source: &Object<'_>, field: &'static str, accepted: &str) {
    if let Some(name) = source.require(field, accepted) {
        name.string();
    }
}

fn read_host_disk(node: &Node<'_>) -> Option<VolumeSource> {
    let disk = node.object();
    if let Some(kind) = disk.require("type", "Disk, DiskOrCreate") {
        kind.word();
    }
    let path = disk.require("path", "the absolute path of an image")?;
    let file = path.string()?;
    let Some(file) = base_name(file) else {
        path.error("the absolute path of an image");
        return None;
    };
    Some(VolumeSource::HostDisk {
        file: file.to_owned(),
    })
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
