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

    /// The table's entry for the object as a whole.
    pub(super) fn field(self) -> &'static Field {
        match self {
            Self::Instance => &fields::ROOT,
            Self::VirtualMachine => &fields::VIRTUAL_MACHINE,
            Self::ReplicaSet => &fields::REPLICA_SET,
            Self::Pool => &fields::POOL,
        }
    }
}

/// Objects with a machine and their paths in their documents. Where there are none, the first
/// document stands for the one that is missing.
pub(super) fn find(documents: &[Value]) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for document in documents {
        collect(String::new(), document, &mut found);
    }
    match found.is_empty() {
        true => vec![(String::new(), documents.first().unwrap_or(&Value::Null))],
        false => found,
    }
}

fn collect<'a>(path: String, value: &'a Value, found: &mut Vec<(String, &'a Value)>) {
    if found.len() >= MAX_MACHINES {
        return;
    }
    if Kind::known(value).is_some() {
        found.push((path, value));
    } else if value.get("kind").is_some_and(|kind| kind == "List") {
        let items = value
            .get("items")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        for (index, item) in items.enumerate() {
            // The documents' depth is bounded, and with it this.
            let item_path = format!("{}[{index}]", join(&path, "items"));
            collect(item_path, item, found);
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
        let paths: Vec<_> = found.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["items[1]", "items[2].items[0]", ""]);
        assert_eq!(Kind::of(found[0].1), Kind::VirtualMachine);
        assert_eq!(
            find(&documents[..1]).len(),
            1,
            "what is wrong is said of it"
        );
        assert_eq!(find(&[])[0].1, &Value::Null);
    }
}
