//! `metadata`: names, and annotations that would change the machine.

use super::reader::{Fields, Node};

/// Who the VMI is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Name.
    pub name: String,
    /// Namespace, `default` if unset.
    pub namespace: String,
    /// UID given by the API server.
    pub uid: Option<String>,
}

const FIELDS: Fields = Fields {
    honoured: &[
        "name",
        "namespace",
        "uid",
        "annotations",
        // Book-keeping of the API server and of controllers.
        "labels",
        "generateName",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "finalizers",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
    ],
    accepted: &[],
    refused: &[],
};

/// Annotations that ask the launcher for something; all others are for somebody else.
const REFUSED_ANNOTATIONS: &[(&str, &str)] = &[
    (
        "hooks.kubevirt.io/hookSidecars",
        "hook sidecars edit libvirt's XML, which there is none of",
    ),
    (
        "kubevirt.io/ignitiondata",
        "Ignition data is not handed to the guest",
    ),
];

pub(super) fn read(node: &Node<'_>) -> Metadata {
    let metadata = node.object(&FIELDS);
    let name = metadata
        .require("name", "a name")
        .and_then(|name| object_name(&name));
    let namespace = match metadata.get("namespace") {
        Some(namespace) => namespace.label().map(str::to_owned),
        None => Some("default".to_owned()),
    };
    for (name, annotation) in metadata
        .get("annotations")
        .map(|node| node.members())
        .unwrap_or_default()
    {
        if let Some((_, why)) = REFUSED_ANNOTATIONS
            .iter()
            .find(|(refused, _)| *refused == name)
        {
            annotation.error_found("this annotation", format_args!("nothing, {why}"));
        }
    }
    Metadata {
        name: name.unwrap_or_default(),
        namespace: namespace.unwrap_or_default(),
        uid: metadata.get("uid").and_then(|uid| object_name(&uid)),
    }
}

/// A DNS subdomain, which names of objects (and UIDs) are.
fn object_name(node: &Node<'_>) -> Option<String> {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let name = node.string()?;
    let good = (1..=253).contains(&name.len())
        && name.chars().all(|c| edge(c) || c == '-' || c == '.')
        && name.starts_with(edge)
        && name.ends_with(edge)
        && !name.contains("..");
    if !good {
        node.error("a DNS name: at most 253 of a-z, 0-9, '-' and '.'");
    }
    good.then(|| name.to_owned())
}
