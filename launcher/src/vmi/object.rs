//! Objects of untrusted documents: every field is claimed by its reader or reported.

use serde_json::{Map, Value};

use super::reader::Node;
use super::words::join;

/// The fields of one kind of object, by what becomes of them. A field in none of the lists is
/// unknown and an error.
pub(super) struct Fields {
    /// Read by the code next to the table.
    pub(super) honoured: &'static [&'static str],
    /// Accepted without effect, and why that does no harm.
    pub(super) accepted: &'static [(&'static str, &'static str)],
    /// Known to KubeVirt but refused, and why.
    pub(super) refused: &'static [(&'static str, &'static str)],
}

/// An object whose field names have been checked.
pub(super) struct Object<'a> {
    node: Node<'a>,
    map: Option<&'a Map<String, Value>>,
    fields: &'static Fields,
}

impl<'a> Object<'a> {
    /// Checks the names of an object's fields against the table. Another type of value reads as
    /// an empty object.
    pub(super) fn check(
        node: Node<'a>,
        map: Option<&'a Map<String, Value>>,
        fields: &'static Fields,
    ) -> Self {
        let object = Self { node, map, fields };
        object.check_names();
        object
    }

    /// The field `name`, which must be in the table's `honoured` list; `null` counts as missing.
    pub(super) fn get(&self, name: &'static str) -> Option<Node<'a>> {
        debug_assert!(
            self.fields.honoured.contains(&name),
            "{name} is not in the table"
        );
        let value = self.map?.get(name).filter(|value| !value.is_null())?;
        Some(self.node.child(name, value))
    }

    /// The field `name`; its absence is an error.
    pub(super) fn require(&self, name: &'static str, accepted: &str) -> Option<Node<'a>> {
        let field = self.get(name);
        if field.is_none() {
            self.missing(name, accepted);
        }
        field
    }

    /// Records that the field `name`, or a field of it (`memory.guest`), is missing.
    pub(super) fn missing(&self, name: &str, accepted: &str) {
        if self.map.is_some() {
            let path = self.path_of(name);
            self.node.report_error(path, "nothing", accepted);
        }
    }

    /// Notes something about a field that need not be there.
    pub(super) fn note(&self, name: &str, note: &str) {
        let path = self.path_of(name);
        self.node.report_note(path, note);
    }

    /// Path of a field or of a field of a field.
    fn path_of(&self, name: &str) -> String {
        let path = self.node.path().to_owned();
        name.split('.').fold(path, |path, name| join(&path, name))
    }

    /// Whether an error says already why this object is of no known kind: it is no object, or it
    /// has a field of the table's `refused` list.
    pub(super) fn is_explained(&self) -> bool {
        let refused = |(name, value): (&String, &Value)| {
            find(self.fields.refused, name).is_some() && !is_vacuous(value)
        };
        self.map.is_none_or(|map| map.iter().any(refused))
    }

    pub(super) fn boolean(&self, name: &'static str) -> Option<bool> {
        self.get(name)?.boolean()
    }

    /// Elements of the list `name`; none when it is missing.
    pub(super) fn items(&self, name: &'static str) -> Vec<Node<'a>> {
        self.get(name).map(|list| list.items()).unwrap_or_default()
    }

    fn check_names(&self) {
        for (name, value) in self.map.into_iter().flatten() {
            if self.fields.honoured.contains(&name.as_str()) || value.is_null() {
                continue;
            }
            let field = self.node.child(name, value);
            if let Some((_, reason)) = find(self.fields.accepted, name) {
                field.note(reason);
            } else if let Some((_, reason)) = find(self.fields.refused, name) {
                if !is_vacuous(value) {
                    field.error(format_args!("nothing, {reason}"));
                }
            } else {
                field.error_found(
                    "an unknown field",
                    format_args!("one of {}", self.known_names()),
                );
            }
        }
    }

    fn known_names(&self) -> String {
        let accepted = self.fields.accepted.iter().map(|(name, _)| *name);
        self.fields
            .honoured
            .iter()
            .copied()
            .chain(accepted)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

fn find(
    table: &'static [(&str, &str)],
    name: &str,
) -> Option<&'static (&'static str, &'static str)> {
    table.iter().find(|(key, _)| *key == name)
}

/// Values that say the same as an absent field for everything in the `refused` lists: `false`,
/// an empty list, an empty string.
fn is_vacuous(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}
