//! A strict reader of untrusted documents: every field is claimed or reported, and all errors are
//! gathered with their path instead of stopping at the first.

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::quantity::{ParseQuantityError, Quantity};
use super::report::Report;

/// Most elements of one list in a VMI.
const MAX_ITEMS: usize = 256;

/// Characters of a document's text shown in an error.
const MAX_SHOWN: usize = 60;

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

/// A value in the document and where it is.
#[derive(Clone)]
pub(super) struct Node<'a> {
    path: String,
    value: &'a Value,
    report: &'a RefCell<Report>,
}

impl<'a> Node<'a> {
    /// The root of a document.
    pub(super) fn root(value: &'a Value, report: &'a RefCell<Report>) -> Self {
        Self {
            path: String::new(),
            value,
            report,
        }
    }

    /// Records that this value cannot be honoured.
    pub(super) fn error(&self, accepted: impl fmt::Display) {
        self.report
            .borrow_mut()
            .error(self.shown_path(), describe(self.value), accepted);
    }

    /// Records an error with words of the caller's for what was found.
    pub(super) fn error_found(&self, found: impl fmt::Display, accepted: impl fmt::Display) {
        self.report
            .borrow_mut()
            .error(self.shown_path(), found, accepted);
    }

    pub(super) fn note(&self, note: impl fmt::Display) {
        self.report.borrow_mut().note(self.shown_path(), note);
    }

    fn shown_path(&self) -> &str {
        if self.path.is_empty() {
            "(document)"
        } else {
            &self.path
        }
    }

    /// The object here, its fields checked against the table. Another type is an error and reads
    /// as an empty object.
    pub(super) fn object(&self, fields: &'static Fields) -> Object<'a> {
        let map = self.value.as_object();
        if map.is_none() {
            self.error("an object");
        }
        let object = Object {
            node: self.clone(),
            map,
            fields,
        };
        object.check_names();
        object
    }

    /// The members of an object whose keys are free (labels, resource names).
    pub(super) fn members(&self) -> Vec<(&'a str, Node<'a>)> {
        let Some(map) = self.value.as_object() else {
            self.error("an object");
            return Vec::new();
        };
        map.iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.as_str(), self.child(key, value)))
            .collect()
    }

    /// The elements of the list here.
    pub(super) fn items(&self) -> Vec<Node<'a>> {
        let Some(items) = self.value.as_array() else {
            self.error("a list");
            return Vec::new();
        };
        if items.len() > MAX_ITEMS {
            self.error_found(
                format_args!("{} elements", items.len()),
                format_args!("at most {MAX_ITEMS} elements"),
            );
            return Vec::new();
        }
        let node = |(index, value)| Node {
            path: format!("{}[{index}]", self.path),
            value,
            report: self.report,
        };
        items.iter().enumerate().map(node).collect()
    }

    pub(super) fn string(&self) -> Option<&'a str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.error("a string (put it in quotes)");
        }
        text
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let value = self.value.as_bool();
        if value.is_none() {
            self.error("true or false");
        }
        value
    }

    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.value.as_u64().filter(|value| range.contains(value));
        if value.is_none() {
            self.error(format_args!(
                "a whole number from {} to {}",
                range.start(),
                range.end()
            ));
        }
        value
    }

    /// A Kubernetes quantity, as a string or a number.
    pub(super) fn quantity(&self) -> Option<Quantity> {
        let parsed = match self.value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(ParseQuantityError::Malformed),
        };
        parsed.map_err(|error| self.error(error)).ok()
    }

    /// One of the given words.
    pub(super) fn word(&self, words: &[&str]) -> Option<&'a str> {
        let word = self.value.as_str().filter(|word| words.contains(word));
        if word.is_none() {
            self.error(words.join(", "));
        }
        word
    }

    /// A DNS label (RFC 1123), which names of disks, volumes, networks and interfaces are. They
    /// become parts of paths, so nothing else may get through.
    pub(super) fn label(&self) -> Option<&'a str> {
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let label = self.value.as_str().filter(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(allowed)
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
        if label.is_none() {
            self.error("a DNS label: at most 63 of a-z, 0-9 and '-', no '-' at either end");
        }
        label
    }

    fn child(&self, name: &str, value: &'a Value) -> Node<'a> {
        Node {
            path: join(&self.path, name),
            value,
            report: self.report,
        }
    }
}

/// An object whose field names have been checked.
pub(super) struct Object<'a> {
    node: Node<'a>,
    map: Option<&'a Map<String, Value>>,
    fields: &'static Fields,
}

impl<'a> Object<'a> {
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
            self.node
                .report
                .borrow_mut()
                .error(path, "nothing", accepted);
        }
    }

    /// Notes something about a field that need not be there.
    pub(super) fn note(&self, name: &str, note: &str) {
        let path = self.path_of(name);
        self.node.report.borrow_mut().note(path, note);
    }

    /// Path of a field or of a field of a field.
    fn path_of(&self, name: &str) -> String {
        let path = self.node.path.clone();
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

fn join(path: &str, name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match (
        path.is_empty(),
        !name.is_empty() && name.len() <= MAX_SHOWN && name.chars().all(plain),
    ) {
        (true, true) => name.to_owned(),
        (false, true) => format!("{path}.{name}"),
        (_, false) => format!("{path}[{}]", quote(name)),
    }
}

/// Text of the document made harmless for a terminal and short.
fn quote(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => quote(text),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FIELDS: Fields = Fields {
        honoured: &["name", "count"],
        accepted: &[("colour", "we see no colours")],
        refused: &[("sound", "there is no sound")],
    };

    fn check(value: Value) -> Report {
        let report = RefCell::default();
        static TABLE: Fields = FIELDS;
        let object = Node::root(&value, &report).object(&TABLE);
        object
            .require("name", "a label")
            .map(|name| name.label().map(str::to_owned));
        object.get("count").map(|count| count.integer(1..=4));
        report.into_inner()
    }

    #[test]
    fn every_field_is_claimed_or_reported() {
        let report = check(json!({"name": "a", "count": 9, "colour": 1, "sound": {}, "x\ny": 1}));
        let paths: Vec<_> = report
            .errors
            .iter()
            .map(|error| error.path.as_str())
            .collect();
        assert_eq!(paths, ["sound", "[\"x\\ny\"]", "count"]);
        assert_eq!(report.notes[0].path, "colour");
    }

    #[test]
    fn vacuous_values_of_refused_fields_pass() {
        assert!(check(json!({"name": "a", "sound": []})).errors.is_empty());
        assert!(
            check(json!({"name": "a", "sound": false}))
                .errors
                .is_empty()
        );
        assert!(
            check(json!({"name": "a", "unknown": null}))
                .errors
                .is_empty()
        );
    }

    #[test]
    fn missing_and_wrong_types_are_named() {
        let report = check(json!({}));
        assert_eq!(
            report.errors[0].to_string(),
            "name: found nothing; accepted: a label"
        );
        let report = check(json!([]));
        assert_eq!(
            report.errors[0].to_string(),
            "(document): found a list; accepted: an object"
        );
        let report = check(json!({"name": "../x"}));
        assert_eq!(report.errors[0].found, "\"../x\"");
    }
}
