//! Volumes whose disk is made of the files of a directory that the pod mounts.

use super::require_name;
use crate::vmi::reader::{Node, Object};

/// A disk of the files of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// What the directory has.
    pub kind: FilesKind,
    /// Label of the disk's file system.
    pub label: String,
    /// The directory need not be there.
    pub optional: bool,
}

/// Kinds of such volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilesKind {
    /// The keys of a ConfigMap.
    ConfigMap,
    /// The keys of a Secret.
    Secret,
    /// Fields of the pod.
    DownwardApi,
    /// Token, certificate and namespace of the pod's service account.
    ServiceAccount,
    /// Answer files for Windows' setup.
    Sysprep,
    /// A directory of the pod; the command line says which.
    ContainerPath,
}

/// Label of the file system where the VMI names none, as in KubeVirt.
const DEFAULT_LABEL: &str = "cfgdata";
const SYSPREP_LABEL: &str = "unattendCD";

/// Longest label of an ISO 9660 volume, bytes (ECMA-119, 8.4.7).
pub(in crate::vmi) const MAX_LABEL: usize = 32;

pub(super) fn read_config_map(node: &Node<'_>) -> Files {
    let map = node.object();
    require_name(&map, "name", "the name of a ConfigMap");
    optional(FilesKind::ConfigMap, &map)
}

pub(super) fn read_secret(node: &Node<'_>) -> Files {
    let secret = node.object();
    require_name(&secret, "secretName", "the name of a Secret");
    optional(FilesKind::Secret, &secret)
}

pub(super) fn read_downward_api(node: &Node<'_>) -> Files {
    files(FilesKind::DownwardApi, label(&node.object()))
}

pub(super) fn read_service_account(node: &Node<'_>) -> Files {
    let account = node.object();
    if let Some(name) = account.get("serviceAccountName") {
        name.string();
    }
    files(FilesKind::ServiceAccount, DEFAULT_LABEL.to_owned())
}

pub(super) fn read_sysprep(node: &Node<'_>) -> Files {
    let sysprep = node.object();
    let sources = ["configMap", "secret"];
    let given = sources.map(|field| sysprep.get(field));
    for source in given.iter().flatten() {
        require_name(
            &source.object(),
            "name",
            "the name of a ConfigMap or a Secret",
        );
    }
    let accepted = "one of configMap, secret";
    match given.iter().flatten().count() {
        0 => node.error_found("no source", accepted),
        1 => {}
        _ => node.error_found("more than one source", accepted),
    }
    files(FilesKind::Sysprep, SYSPREP_LABEL.to_owned())
}

/// A path of the VMI's is not looked at: it may be of a file that is not meant for the guest.
pub(super) fn read_container_path(node: &Node<'_>) -> Files {
    let container = node.object();
    require_name(&container, "path", "the path of a directory");
    container.boolean("readOnly");
    files(FilesKind::ContainerPath, DEFAULT_LABEL.to_owned())
}

fn optional(kind: FilesKind, object: &Object<'_>) -> Files {
    Files {
        optional: object.boolean("optional").unwrap_or(false),
        ..files(kind, label(object))
    }
}

fn files(kind: FilesKind, label: String) -> Files {
    Files {
        kind,
        label,
        optional: false,
    }
}

fn label(object: &Object<'_>) -> String {
    let label = object.get("volumeLabel");
    let label = label.and_then(|label| label.printable(MAX_LABEL));
    label.unwrap_or(DEFAULT_LABEL).to_owned()
}
