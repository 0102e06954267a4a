//! `cloudInitNoCloud` and `cloudInitConfigDrive`.

use data_encoding::BASE64;

use super::require_name;
use crate::vmi::hidden::Hidden;
use crate::vmi::reader::{Node, Object};

/// What cloud-init finds on a disk of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudInit {
    /// How it is laid out.
    pub layout: CloudInitLayout,
    /// What the guest shall do; nothing if unset.
    pub user_data: Option<CloudInitData>,
    /// How its network is configured, if cloud-init shall not find out itself.
    pub network_data: Option<CloudInitData>,
}

/// The data sources of cloud-init that KubeVirt knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloudInitLayout {
    /// Files `user-data` and `meta-data` on a volume `cidata`.
    NoCloud,
    /// Files below `openstack/latest` on a volume `config-2`.
    ConfigDrive,
}

/// Where data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloudInitData {
    /// In the VMI.
    Given(Hidden),
    /// In the Secret that is mounted for the volume.
    Secret,
}

pub(super) fn read(node: &Node<'_>, layout: CloudInitLayout) -> CloudInit {
    let object = node.object();
    let user = ["userData", "userDataBase64", "secretRef"];
    let network = ["networkData", "networkDataBase64", "networkDataSecretRef"];
    let read = CloudInit {
        layout,
        user_data: read_data(node, &object, user),
        network_data: read_data(node, &object, network),
    };
    let fields = [user, network].concat();
    if fields.iter().all(|field| object.get(field).is_none()) {
        node.error_found(
            "neither user data nor network data",
            format_args!("one of {}", fields.join(", ")),
        );
    }
    read
}

/// Reads data given as text, as base64 or by a Secret.
fn read_data(
    node: &Node<'_>,
    object: &Object<'_>,
    fields: [&'static str; 3],
) -> Option<CloudInitData> {
    let [text, base64, secret] = fields;
    let text = object.get(text).map(|node| {
        let text = node.string().unwrap_or_default();
        CloudInitData::Given(Hidden::new(text))
    });
    let base64 = object.get(base64).map(|node| {
        let bytes = node.string().and_then(|text| decode(&node, text));
        CloudInitData::Given(Hidden::new(bytes.unwrap_or_default()))
    });
    let secret = object.get(secret).map(|node| {
        require_name(&node.object(), "name", "the name of a Secret");
        CloudInitData::Secret
    });
    let mut given = [text, base64, secret].into_iter().flatten();
    match (given.next(), given.count()) {
        (data, 0) => data,
        _ => {
            let accepted = format!("one of {}", fields.join(", "));
            node.error_found("the same data more than once", accepted);
            None
        }
    }
}

/// Line breaks are no part of it, as in Go.
fn decode(node: &Node<'_>, text: &str) -> Option<Vec<u8>> {
    let text: Vec<u8> = text
        .bytes()
        .filter(|byte| !b"\r\n".contains(byte))
        .collect();
    let bytes = BASE64.decode(&text);
    if bytes.is_err() {
        // The text itself may be a password.
        node.error_found("text that is not base64", "base64");
    }
    bytes.ok()
}
