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
}

pub(super) fn read(node: &Node<'_>) -> Metadata {
    let metadata = node.object();
    let name = metadata
        .require("name", "a name")
        .and_then(|name| object_name(&name));
    let namespace = match metadata.get("namespace") {
        Some(namespace) => namespace.label().map(str::to_owned),
        None => Some("default".to_owned()),
    };
    if let Some(annotations) = metadata.get("annotations") {
        annotations.object();
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
