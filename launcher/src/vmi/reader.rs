//! A strict reader of untrusted documents: every field is claimed or reported, and all errors are
//! gathered with their path instead of stopping at the first.

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;

use serde_json::Value;

pub(super) use super::object::{Fields, Object};
use super::quantity::{ParseQuantityError, Quantity};
use super::report::Report;
use super::words::{describe, join};

/// Most elements of one list in a VMI.
const MAX_ITEMS: usize = 256;

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

    /// Records an error at another path.
    pub(super) fn report_error(
        &self,
        path: String,
        found: impl fmt::Display,
        accepted: impl fmt::Display,
    ) {
        self.report.borrow_mut().error(path, found, accepted);
    }

    /// Records a note at another path.
    pub(super) fn report_note(&self, path: String, note: impl fmt::Display) {
        self.report.borrow_mut().note(path, note);
    }

    pub(super) fn path(&self) -> &str {
        &self.path
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
        Object::check(self.clone(), map, fields)
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

    /// The field `name` of this object.
    pub(super) fn child(&self, name: &str, value: &'a Value) -> Node<'a> {
        Node {
            path: join(&self.path, name),
            value,
            report: self.report,
        }
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
