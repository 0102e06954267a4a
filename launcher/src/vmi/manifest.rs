//! Where machines are in a manifest: VMIs, objects with a template for them, and lists of either.

use serde_json::Value;

use super::fields::{self, Field};
use super::words::join;

/// Most machines of one text.
const MAX_MACHINES: usize = 256;

/// Kinds of objects that have a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Instance,
    VirtualMachine,
    ReplicaSet,
    Pool,
}

impl Kind {
    const ALL: [Self; 4] = [
        Self::Instance,
        Self::VirtualMachine,
        Self::ReplicaSet,
        Self::Pool,
    ];

    /// The kind of an object; what has none of these is read as a VMI, which says what is wrong.
    pub(super) fn of(value: &Value) -> Self {
        Self::known(value).unwrap_or(Self::Instance)
    }

    fn known(value: &Value) -> Option<Self> {
        let name = value.get("kind")?.as_str()?;
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// As the field `kind` has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Instance => "VirtualMachineInstance",
            Self::VirtualMachine => "VirtualMachine",
            Self::ReplicaSet => "VirtualMachineInstanceReplicaSet",
            Self::Pool => "VirtualMachinePool",
        }
    }

    /// Where the VMI's spec is in the object.
    pub(super) fn spec_path(self) -> &'static [&'static str] {
        match self {
            Self::Instance => &["spec"],
            Self::VirtualMachine | Self::ReplicaSet => &["spec", "template", "spec"],
            Self::Pool => &["spec", "virtualMachineTemplate", "spec", "template", "spec"],
        }
    }

    /// Where in the object the spec of a VirtualMachine is.
    pub(super) fn machine_path(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Instance | Self::ReplicaSet => None,
            Self::VirtualMachine => Some(&["spec"]),
            Self::Pool => Some(&["spec", "virtualMachineTemplate", "spec"]),
        }
    }

    /// The table's entry for the object as a whole.
    pub(super) fn field(self) -> Field {
        match self {
            Self::Instance => fields::ROOT,
            Self::VirtualMachine => fields::VIRTUAL_MACHINE,
            Self::ReplicaSet => fields::REPLICA_SET,
            Self::Pool => fields::POOL,
        }
    }
}

/// An object with a machine.
#[derive(Clone, Debug)]
pub(super) struct Found<'a> {
    /// Number of its document, from 0.
    pub(super) document: usize,
    /// Its path in the document.
    pub(super) path: String,
    pub(super) value: &'a Value,
    /// It is of a kind that has one; otherwise it stands for the one that is missing.
    pub(super) is_known: bool,
}

/// Objects with a machine. Where there are none, the first document stands for it.
pub(super) fn find(documents: &[Value]) -> Vec<Found<'_>> {
    let mut found = Vec::new();
    for (document, value) in documents.iter().enumerate() {
        collect(document, String::new(), value, &mut found);
    }
    if found.is_empty() {
        found.push(Found {
            document: 0,
            path: String::new(),
            value: documents.first().unwrap_or(&Value::Null),
            is_known: false,
        });
    }
    found
}

fn collect<'a>(document: usize, path: String, value: &'a Value, found: &mut Vec<Found<'a>>) {
    if found.len() >= MAX_MACHINES {
        return;
    }
    if Kind::known(value).is_some() {
        found.push(Found {
            document,
            path,
            value,
            is_known: true,
        });
    } else if value.get("kind").is_some_and(|kind| kind == "List") {
        let items = value
            .get("items")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        for (index, item) in items.enumerate() {
            // The documents' depth is bounded, and with it this.
            let item_path = format!("{}[{index}]", join(&path, "items"));
            collect(document, item_path, item, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn machines_are_found_in_lists_and_among_others() {
        let vm = json!({"kind": "VirtualMachine"});
        let documents = [
            json!({"kind": "Secret"}),
            json!({"kind": "List", "items": [{"kind": "Service"}, vm, {"kind": "List", "items": [vm]}]}),
            json!({"kind": "VirtualMachineInstance"}),
        ];
        let found = find(&documents);
        let paths: Vec<_> = found.iter().map(|found| found.path.as_str()).collect();
        assert_eq!(paths, ["items[1]", "items[2].items[0]", ""]);
        assert_eq!(Kind::of(found[0].value), Kind::VirtualMachine);
        assert_eq!(found[2].document, 2);
        assert!(!find(&documents[..1])[0].is_known, "it says what is wrong");
        assert_eq!(find(&[])[0].value, &Value::Null);
    }
}
