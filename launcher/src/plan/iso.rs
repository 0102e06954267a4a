//! Disks made of files: file names, contents and labels as KubeVirt has them.

use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;

use super::{PlanOptions, hostname};
use crate::vmi::{CloudInit, CloudInitData, CloudInitLayout, Files, FilesKind, Hidden, Vmi};

/// Where KubeVirt mounts what volumes are made of.
const PRIVATE_DIR: &str = "/var/run/kubevirt-private";

/// Where Kubernetes mounts the pod's service account.
const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Files of a Secret for cloud-init, under either name.
const USER_DATA_KEYS: [&str; 2] = ["userdata", "userData"];
const NETWORK_DATA_KEYS: [&str; 2] = ["networkdata", "networkData"];

/// A file system to be made of files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IsoPlan {
    /// Its label.
    pub label: String,
    /// Files whose contents are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<IsoFile>,
    /// Where the others come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<IsoDirectory>,
    /// What is added to a file about who the guest is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<PublicKeys>,
}

/// Public SSH keys, which become a field of a JSON file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublicKeys {
    /// The file.
    pub path: &'static str,
    /// The field: an object of keys by number.
    pub field: &'static str,
    /// What has them, each in a file of its own.
    pub directories: Vec<IsoDirectory>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IsoFile {
    /// Path in the file system, without a slash at its beginning.
    pub path: &'static str,
    /// What is in it; plans show its length only.
    pub content: Hidden,
}

/// A directory of which files are taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IsoDirectory {
    /// Places to look at; the first that exists is taken.
    pub candidates: Vec<PathBuf>,
    /// The path was named on the command line.
    pub trusted: bool,
    /// It need not be there.
    pub optional: bool,
    /// What is taken.
    pub take: Take,
}

/// What is taken of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Take {
    /// Everything.
    All,
    /// Everything, among which are answers for Windows' setup.
    Answers,
    /// These files.
    Named(Vec<NamedFile>),
}

/// A file that is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedFile {
    /// Names that it may have; the first that exists is taken.
    pub names: [&'static str; 2],
    /// Its path in the file system.
    pub path: &'static str,
}

/// Paths of what cloud-init finds in a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeedPaths {
    pub(crate) layout: CloudInitLayout,
    pub(crate) user_data: &'static str,
    pub(crate) meta_data: &'static str,
    pub(crate) network_data: &'static str,
}

impl IsoPlan {
    /// Where in it things are, if it is cloud-init's: of other disks no contents are known.
    pub(crate) fn seed(&self) -> Option<SeedPaths> {
        let mut layouts = [CloudInitLayout::NoCloud, CloudInitLayout::ConfigDrive].into_iter();
        layouts.find_map(|layout| {
            let Layout {
                user_data,
                meta_data,
                network_data,
                ..
            } = Layout::of(layout);
            let is_there = self.files.iter().any(|file| file.path == meta_data);
            is_there.then_some(SeedPaths {
                layout,
                user_data,
                meta_data,
                network_data,
            })
        })
    }

    pub(super) fn places(&self) -> &[PathBuf] {
        let directory = self.directory.as_ref();
        directory.map_or(&[], |directory| &directory.candidates)
    }
}

/// Whether a part of cloud-init's data is in a Secret.
pub(super) fn needs_secret(seed: &CloudInit) -> bool {
    let data = [&seed.user_data, &seed.network_data];
    data.contains(&&Some(CloudInitData::Secret))
}

/// The disk of a ConfigMap and the like.
pub(super) fn files(volume: &str, files: &Files, named: Option<&Path>) -> IsoPlan {
    let below = |kind: &str| PathBuf::from(format!("{PRIVATE_DIR}/{kind}/{volume}"));
    let place = match files.kind {
        FilesKind::ConfigMap => Some(below("config-map")),
        FilesKind::Secret => Some(below("secret")),
        FilesKind::DownwardApi => Some(below("downwardapi")),
        FilesKind::Sysprep => Some(below("sysprep")),
        FilesKind::ServiceAccount => Some(PathBuf::from(SERVICE_ACCOUNT_DIR)),
        FilesKind::ContainerPath => None,
    };
    let take = match files.kind {
        FilesKind::Sysprep => Take::Answers,
        _ => Take::All,
    };
    IsoPlan {
        label: files.label.clone(),
        files: Vec::new(),
        directory: Some(directory(place, named, files.optional, take)),
        keys: None,
    }
}

fn directory(
    place: Option<PathBuf>,
    named: Option<&Path>,
    optional: bool,
    take: Take,
) -> IsoDirectory {
    IsoDirectory {
        candidates: named.map(Path::to_owned).or(place).into_iter().collect(),
        trusted: named.is_some(),
        optional,
        take,
    }
}

/// The disk of cloud-init.
pub(super) fn cloud_init(
    vmi: &Vmi,
    volume: &str,
    seed: &CloudInit,
    options: &PlanOptions,
    named: Option<&Path>,
) -> IsoPlan {
    let layout = Layout::of(seed.layout);
    let mut files = vec![IsoFile {
        path: layout.meta_data,
        content: Hidden::new(meta_data(vmi, seed.layout)),
    }];
    let mut secret = Vec::new();
    let parts = [
        (&seed.user_data, USER_DATA_KEYS, layout.user_data),
        (&seed.network_data, NETWORK_DATA_KEYS, layout.network_data),
    ];
    for (data, names, path) in parts {
        let content = match data {
            Some(CloudInitData::Given(content)) => content.clone(),
            Some(CloudInitData::Secret) => {
                secret.push(NamedFile { names, path });
                continue;
            }
            // There are always user data, if only empty ones.
            None if path == layout.user_data => Hidden::default(),
            None => continue,
        };
        files.push(IsoFile { path, content });
    }
    let place = PathBuf::from(format!("{PRIVATE_DIR}/secret/{volume}"));
    let has_secret = !secret.is_empty();
    IsoPlan {
        label: layout.label.to_owned(),
        files,
        directory: has_secret.then(|| directory(Some(place), named, false, Take::Named(secret))),
        keys: public_keys(vmi, seed.layout, options),
    }
}

/// The keys of `accessCredentials` for a layout, if there are any.
fn public_keys(vmi: &Vmi, layout: CloudInitLayout, options: &PlanOptions) -> Option<PublicKeys> {
    let keys = vmi
        .spec
        .access_keys
        .iter()
        .filter(|keys| keys.layout == layout);
    let directories: Vec<_> = keys
        .map(|keys| {
            let named = options.volume(&keys.secret);
            directory(Some(access_secret(&keys.secret)), named, false, Take::All)
        })
        .collect();
    let layout = Layout::of(layout);
    (!directories.is_empty()).then_some(PublicKeys {
        path: layout.meta_data,
        field: layout.public_keys,
        directories,
    })
}

/// Where KubeVirt mounts a Secret with keys.
pub(crate) fn access_secret(name: &str) -> PathBuf {
    PathBuf::from(format!("{PRIVATE_DIR}/secret/{name}-access-cred"))
}

/// Where cloud-init looks for what.
struct Layout {
    label: &'static str,
    user_data: &'static str,
    meta_data: &'static str,
    network_data: &'static str,
    /// Field of the meta-data with SSH keys.
    public_keys: &'static str,
}

impl Layout {
    fn of(layout: CloudInitLayout) -> Self {
        match layout {
            CloudInitLayout::NoCloud => Self {
                label: "cidata",
                user_data: "user-data",
                meta_data: "meta-data",
                network_data: "network-config",
                public_keys: "public-keys",
            },
            CloudInitLayout::ConfigDrive => Self {
                label: "config-2",
                user_data: "openstack/latest/user_data",
                meta_data: "openstack/latest/meta_data.json",
                network_data: "openstack/latest/network_data.json",
                public_keys: "public_keys",
            },
        }
    }
}

/// `meta-data` of NoCloud.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct NoCloudMetaData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_type: Option<&'a str>,
    instance_id: &'a str,
    local_hostname: &'a str,
}

/// `meta_data.json` of OpenStack.
#[derive(Serialize)]
struct ConfigDriveMetaData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_type: Option<&'a str>,
    instance_id: &'a str,
    hostname: &'a str,
    uuid: &'a str,
}

/// Who the guest is. cloud-init does again what it does once an instance when the instance ID is another: it
/// is the machine's UUID for NoCloud, which follows from the VMI's name where it has none.
fn meta_data(vmi: &Vmi, layout: CloudInitLayout) -> Vec<u8> {
    let metadata = &vmi.metadata;
    let named = format!("{}.{}", metadata.name, metadata.namespace);
    let hostname = &hostname(vmi);
    let uuid = vmi.spec.identity.plan(&metadata.name).uuid;
    let uuid = &Uuid::from_bytes(uuid).to_string();
    let instance_type = metadata.instancetype.as_deref();
    let json = match layout {
        CloudInitLayout::NoCloud => serde_json::to_vec(&NoCloudMetaData {
            instance_type,
            instance_id: uuid,
            local_hostname: hostname,
        }),
        CloudInitLayout::ConfigDrive => serde_json::to_vec(&ConfigDriveMetaData {
            instance_type,
            instance_id: &named,
            hostname,
            uuid,
        }),
    };
    json.unwrap_or_default()
}
