//! `metadata`: names, and annotations that would change the machine.

use super::reader::Node;

/// Who the VMI is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Name.
    pub name: String,
    /// Namespace, `default` if unset.
    pub namespace: String,
    /// UID given by the API server.
    pub uid: Option<String>,
    /// The instance type that the VMI was made by, if any.
    pub instancetype: Option<String>,
}

const INSTANCETYPES: [&str; 2] = [
    "kubevirt.io/cluster-instancetype-name",
    "kubevirt.io/instancetype-name",
];

pub(super) fn read(node: &Node<'_>) -> Metadata {
    let metadata = node.object();
    // What the API server makes a name of begins like that.
    let generated = metadata
        .get("generateName")
        .and_then(|node| node.dns_prefix());
    let name = match (metadata.get("name"), generated) {
        (None, Some(prefix)) => Some(prefix),
        _ => metadata
            .require("name", "a name")
            .and_then(|name| name.dns_name()),
    };
    let namespace = match metadata.get("namespace") {
        Some(namespace) => namespace.label().map(str::to_owned),
        None => Some("default".to_owned()),
    };
    let annotations = metadata.get("annotations");
    Metadata {
        name: name.unwrap_or_default().to_owned(),
        namespace: namespace.unwrap_or_default(),
        uid: metadata
            .get("uid")
            .and_then(|uid| uid.dns_name().map(str::to_owned)),
        instancetype: annotations.and_then(|annotations| read_annotations(&annotations)),
    }
}

/// The instance type that they name.
fn read_annotations(node: &Node<'_>) -> Option<String> {
    let annotations = node.object();
    let named = INSTANCETYPES.map(|name| annotations.get(name)?.string());
    named.into_iter().flatten().next().map(str::to_owned)
}

/// Reads the metadata of a template: nothing in it names the machine.
pub(super) fn read_template(node: &Node<'_>) {
    let metadata = node.object();
    for field in ["name", "generateName", "namespace", "uid"] {
        metadata.get(field).map(|node| node.string().is_some());
    }
    if let Some(annotations) = metadata.get("annotations") {
        read_annotations(&annotations);
    }
}
