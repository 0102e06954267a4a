//! A strict reader of untrusted documents: every field is claimed or reported, and all errors are
//! gathered with their path instead of stopping at the first.

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::fields::{Class, Field};
pub(super) use super::object::Object;
use super::object::STRICT;
use super::quantity::{ParseQuantityError, Quantity};
use super::report::Report;
use super::seen::Seen;
use super::words::{describe, join};

/// Most elements of one list in a VMI.
const MAX_ITEMS: usize = 256;

/// What comes of reading a document besides its values.
#[derive(Default)]
pub(super) struct Reading {
    /// Errors and notes.
    pub(super) report: RefCell<Report>,
    /// What was read.
    pub(super) seen: Seen,
    /// What would be adapted is refused.
    pub(super) strict: bool,
    /// A field that is not known is noted and not refused.
    pub(super) of_cluster: bool,
}

impl Reading {
    /// Reading with or without adapting what can be.
    pub(super) fn strict(strict: bool) -> Self {
        Self {
            strict,
            ..Self::default()
        }
    }
}

/// A value in the document, where it is, and what the table says about it.
#[derive(Clone)]
pub(super) struct Node<'a> {
    path: String,
    field: Field,
    value: &'a Value,
    reading: &'a Reading,
}

impl<'a> Node<'a> {
    /// An object at `path` of its document, of the kind that `field` stands for.
    pub(super) fn root(path: String, field: Field, value: &'a Value, reading: &'a Reading) -> Self {
        Self {
            path,
            field,
            value,
            reading,
        }
    }

    /// Records that this value cannot be honoured.
    pub(super) fn error(&self, accepted: impl fmt::Display) {
        self.error_found(describe(self.value), accepted);
    }

    /// Records an error with words of the caller's for what was found.
    pub(super) fn error_found(&self, found: impl fmt::Display, accepted: impl fmt::Display) {
        self.report_error(self.shown_path().to_owned(), found, accepted);
    }

    /// Records that the table refuses what is here, though it accepts `accepted`.
    pub(super) fn refuse(&self, accepted: &str, reason: &str, way_out: &str) {
        match way_out {
            "" => self.error(format_args!("{accepted}, {reason}")),
            _ => self.error(format_args!("{accepted}, {reason}: {way_out}")),
        }
    }

    pub(super) fn note(&self, note: impl fmt::Display) {
        self.report_note(self.shown_path().to_owned(), note);
    }

    /// Records an error at another path.
    pub(super) fn report_error(
        &self,
        path: String,
        found: impl fmt::Display,
        accepted: impl fmt::Display,
    ) {
        self.reading
            .report
            .borrow_mut()
            .error(path, found, accepted);
    }

    /// Notes that this value is adapted, or refuses that; an empty one asks for nothing.
    pub(super) fn adapt(&self, notice: &str, is_vacuous: bool) {
        self.reading.seen.insert(&self.path);
        match self.reading.strict {
            _ if is_vacuous => {}
            true => self.refuse(STRICT, notice, ""),
            false => self.note(notice),
        }
    }

    /// Notes that what is here, whatever it is, is for others to read.
    pub(super) fn leave(&self, note: &str) {
        self.reading.seen.insert_all(&self.path, self.value);
        self.note(note);
    }

    pub(super) fn is_strict(&self) -> bool {
        self.reading.strict
    }

    /// Whether the API server of a cluster knows all fields.
    pub(super) fn is_of_cluster(&self) -> bool {
        self.reading.of_cluster
    }

    /// Whether further errors would only be counted.
    pub(super) fn report_is_full(&self) -> bool {
        self.reading.report.borrow().is_full()
    }

    /// Records a note at another path.
    pub(super) fn report_note(&self, path: String, note: impl fmt::Display) {
        self.reading.report.borrow_mut().note(path, note);
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

    /// The table's entry for this place.
    pub(super) fn field(&self) -> Field {
        self.field
    }

    fn read(&self) -> &'a Value {
        self.reading.seen.insert(&self.path);
        self.value
    }

    /// The object here, its fields checked against the table. Another type is an error and reads
    /// as an empty object.
    pub(super) fn object(&self) -> Object<'a> {
        let map = self.read().as_object();
        if map.is_none() {
            self.error("an object");
        }
        Object::check(self.clone(), map)
    }

    /// The elements of the list here.
    pub(super) fn items(&self) -> Vec<Node<'a>> {
        let Some(items) = self.read().as_array() else {
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
            field: self.field,
            value,
            reading: self.reading,
        };
        items.iter().enumerate().map(node).collect()
    }

    pub(super) fn string(&self) -> Option<&'a str> {
        let text = self.read().as_str();
        if text.is_none() {
            self.error("a string (put it in quotes)");
        }
        text
    }

    /// A string of at most `max` ASCII characters that can be printed.
    pub(super) fn printable(&self, max: usize) -> Option<&'a str> {
        let text = self.string()?;
        let printable = text.bytes().all(|c| c == b' ' || c.is_ascii_graphic());
        if !printable || text.len() > max {
            self.error(format_args!("at most {max} printable ASCII characters"));
            return None;
        }
        Some(text)
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let Some(value) = self.read().as_bool() else {
            self.error("true or false");
            return None;
        };
        self.check_value(if value { "true" } else { "false" })
            .then_some(value)
    }

    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.read().as_u64().filter(|value| range.contains(value));
        if value.is_none() {
            self.error(format_args!(
                "a whole number from {} to {}",
                range.start(),
                range.end()
            ));
        }
        value
    }

    /// The same, perhaps below zero.
    pub(super) fn signed(&self, range: RangeInclusive<i64>) -> Option<i64> {
        let value = self.read().as_i64().filter(|value| range.contains(value));
        if value.is_none() {
            let (start, end) = (range.start(), range.end());
            self.error(format_args!("a whole number from {start} to {end}"));
        }
        value
    }

    /// A Kubernetes quantity, as a string or a number.
    pub(super) fn quantity(&self) -> Option<Quantity> {
        let parsed = match self.read() {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(ParseQuantityError::Malformed),
        };
        parsed.map_err(|error| self.error(error)).ok()
    }

    /// One of the words that the table has for this field.
    pub(super) fn word(&self) -> Option<&'static str> {
        let text = self.read().as_str();
        let Some(entry) = text.and_then(|text| self.field.value(text)) else {
            self.error(self.accepted_values());
            return None;
        };
        let word = entry.value?;
        self.check_value(word).then_some(word)
    }

    /// The same, in capitals or not.
    pub(super) fn word_of_any_case(&self) -> Option<&'static str> {
        let text = self.read().as_str();
        let same = |word: &&'static str| text.is_some_and(|text| text.eq_ignore_ascii_case(word));
        let word = self.field.values().filter_map(|entry| entry.value);
        let word = word.into_iter().find(same);
        if word.is_none() {
            self.error(self.accepted_values());
        }
        word
    }

    /// Notes or refuses a value as the table has it; values without an entry pass.
    fn check_value(&self, value: &str) -> bool {
        match self.field.value(value).map(|entry| entry.class) {
            Some(Class::Adapted(text)) => self.adapt(text, false),
            Some(Class::NoEffect(text)) => self.note(text),
            Some(Class::Refused { reason, way_out }) => {
                self.refuse(&self.accepted_values(), reason, way_out);
                return false;
            }
            _ => {}
        }
        true
    }

    fn accepted_values(&self) -> String {
        let values = self.field.values();
        let accepted = values.filter(|entry| !matches!(entry.class, Class::Refused { .. }));
        let words = accepted.filter_map(|entry| entry.value.filter(|word| !word.is_empty()));
        words.collect::<Vec<_>>().join(", ")
    }

    /// A DNS label (RFC 1123), which names of disks, volumes, networks and interfaces are. They
    /// become parts of paths, so nothing else may get through.
    pub(super) fn label(&self) -> Option<&'a str> {
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let label = self.read().as_str().filter(|label| {
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

    /// A DNS subdomain (RFC 1123), which names of objects, and UIDs, are.
    pub(super) fn dns_name(&self) -> Option<&'a str> {
        self.as_dns_name(self.string()?)
    }

    /// The beginning of a DNS subdomain, without the dash that parts it from the rest.
    pub(super) fn dns_prefix(&self) -> Option<&'a str> {
        self.as_dns_name(self.string()?.trim_end_matches('-'))
    }

    fn as_dns_name(&self, name: &'a str) -> Option<&'a str> {
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good = (1..=253).contains(&name.len())
            && name.chars().all(|c| edge(c) || c == '-' || c == '.')
            && name.starts_with(edge)
            && name.ends_with(edge)
            && !name.contains("..");
        if !good {
            self.error("a DNS name: at most 253 of a-z, 0-9, '-' and '.'");
        }
        good.then_some(name)
    }

    /// The field `name` of this object, which is `field` in the table.
    pub(super) fn child(&self, name: &str, field: Field, value: &'a Value) -> Node<'a> {
        Node {
            path: join(&self.path, name),
            field,
            value,
            reading: self.reading,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fields::ROOT;
    use super::*;

    fn check(value: Value) -> Report {
        let reading = Reading::default();
        let object = Node::root(String::new(), ROOT, &value, &reading).object();
        object
            .require("apiVersion", "a version")
            .map(|node| node.word());
        if let Some(spec) = object.get("spec") {
            let spec = spec.object();
            spec.get("hostname")
                .map(|name| name.label().map(str::to_owned));
            let grace = spec.get("terminationGracePeriodSeconds");
            grace.map(|grace| grace.integer(1..=4));
        }
        reading.report.into_inner()
    }

    fn version(spec: Value) -> Value {
        json!({"apiVersion": "kubevirt.io/v1", "spec": spec})
    }

    #[test]
    fn every_field_is_claimed_or_reported() {
        let report = check(version(json!({
            "hostname": "a",
            "terminationGracePeriodSeconds": 9,
            "affinity": {},
            "utilityVolumes": [{}],
            "x\ny": 1,
        })));
        let errors = report.errors.iter();
        let paths: Vec<_> = errors.map(|error| error.path.as_str()).collect();
        let expected = [
            "spec.utilityVolumes",
            "spec[\"x\\ny\"]",
            "spec.terminationGracePeriodSeconds",
        ];
        assert_eq!(paths, expected);
        assert_eq!(report.notes[0].path, "spec.affinity");
    }

    #[test]
    fn unknown_fields_are_guessed_at() {
        let found = |name: &str| {
            let report = check(version(json!({name: 1})));
            report.errors[0].found.clone()
        };
        assert_eq!(
            found("hostName"),
            "an unknown field (did you mean hostname?)"
        );
        assert_eq!(
            found("memory"),
            "an unknown field (did you mean spec.domain.memory?)"
        );
        assert_eq!(found("weather"), "an unknown field");
    }

    #[test]
    fn vacuous_values_of_refused_fields_pass() {
        for spec in [
            json!({"utilityVolumes": []}),
            json!({"utilityVolumes": false}),
            json!({"unknown": null}),
        ] {
            assert!(check(version(spec)).errors.is_empty());
        }
    }

    #[test]
    fn missing_and_wrong_types_are_named() {
        let report = check(json!({}));
        assert_eq!(
            report.errors[0].to_string(),
            "apiVersion: found nothing; accepted: a version"
        );
        let report = check(json!([]));
        assert_eq!(
            report.errors[0].to_string(),
            "(document): found a list; accepted: an object"
        );
        let report = check(version(json!({"hostname": "../x"})));
        assert_eq!(report.errors[0].found, "\"../x\"");
    }
}
