//! Objects of untrusted documents: every field is claimed by its reader or reported.

use serde_json::{Map, Value};

use super::fields::{Class, Field};
use super::reader::Node;
use super::words::{is_unset, join};

/// An object whose field names have been checked.
pub(super) struct Object<'a> {
    node: Node<'a>,
    map: Option<&'a Map<String, Value>>,
}

impl<'a> Object<'a> {
    /// Checks the names of an object's fields against the table. Another type of value reads as
    /// an empty object.
    pub(super) fn check(node: Node<'a>, map: Option<&'a Map<String, Value>>) -> Self {
        let object = Self { node, map };
        object.check_names();
        object
    }

    /// The field `name`, which the table must call honoured; `null` and `""` count as missing.
    pub(super) fn get(&self, name: &'static str) -> Option<Node<'a>> {
        let field = self.node.field().child(name);
        debug_assert!(
            field.is_some_and(|field| matches!(field.class, Class::Honoured | Class::Adapted(_))),
            "{name} is not honoured by the table"
        );
        let value = self.map?.get(name).filter(|value| !is_unset(value))?;
        Some(self.node.child(name, field?, value))
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

    /// Notes what the table says about a field, or a field of a field, that is not set.
    pub(super) fn note_unset(&self, name: &str) {
        let mut field = Some(self.node.field());
        for name in name.split('.') {
            field = field.and_then(|field| field.child(name));
        }
        self.say_unset(name, field.and_then(|field| field.value("")));
    }

    /// Says what the table says about a value that is meant by nothing.
    fn say_unset(&self, name: &str, value: Option<Field>) {
        match value.map(|value| value.class) {
            Some(Class::Adapted(text)) if self.node.is_strict() => {
                self.missing(name, &format!("{STRICT}: {text}"));
            }
            Some(Class::Adapted(text) | Class::NoEffect(text)) => self.note(name, text),
            _ => {}
        }
    }

    /// Path of a field or of a field of a field.
    fn path_of(&self, name: &str) -> String {
        let path = self.node.path().to_owned();
        name.split('.').fold(path, |path, name| join(&path, name))
    }

    /// Whether an error says already why this object is of no known kind: it is no object, or it
    /// has a field that the table refuses.
    pub(super) fn is_explained(&self) -> bool {
        let refused = |(name, value): (&String, &Value)| {
            let field = self.node.field().child(name);
            let refused = |field: Field| matches!(field.class, Class::Refused { .. });
            field.is_some_and(refused) && !is_vacuous(value)
        };
        self.map.is_none_or(|map| map.iter().any(refused))
    }

    pub(super) fn boolean(&self, name: &'static str) -> Option<bool> {
        self.get(name)?.boolean()
    }

    /// The field `name`, or `default` with whatever the table says about that value.
    pub(super) fn boolean_or(&self, name: &'static str, default: bool) -> bool {
        if let Some(node) = self.get(name) {
            return node.boolean().unwrap_or(default);
        }
        let field = self.node.field().child(name);
        let value = field.and_then(|field| field.value(if default { "true" } else { "false" }));
        self.say_unset(name, value);
        default
    }

    /// The field `name` as one of the words in the table.
    pub(super) fn word(&self, name: &'static str) -> Option<&'static str> {
        self.get(name)?.word()
    }

    /// Elements of the list `name`; none when it is missing.
    pub(super) fn items(&self, name: &'static str) -> Vec<Node<'a>> {
        self.get(name).map(|list| list.items()).unwrap_or_default()
    }

    fn check_names(&self) {
        for (name, value) in self.map.into_iter().flatten() {
            if is_unset(value) {
                continue;
            }
            match self.node.field().child(name) {
                Some(field) => self.check_class(name, field, value),
                None => self.report_unknown(name),
            }
        }
    }

    fn check_class(&self, name: &str, field: Field, value: &'a Value) {
        let node = || self.node.child(name, field, value);
        match field.class {
            Class::Honoured | Class::OfTheCluster => {}
            Class::Adapted(text) => node().adapt(text, is_vacuous(value)),
            Class::NoEffect(text) => node().note(text),
            Class::OfThePod => node().note(OF_THE_POD),
            Class::Refused { .. } if is_vacuous(value) => {}
            Class::Refused { reason, way_out } => node().refuse("nothing", reason, way_out),
        }
    }

    fn report_unknown(&self, name: &str) {
        if self.node.report_is_full() {
            return;
        }
        if self.node.is_of_cluster() {
            let path = join(self.node.path(), name);
            return self
                .node
                .report_note(path, "not known to this podvisor: no effect");
        }
        let found = match self.node.field().suggest(name) {
            Some(meant) => format!("an unknown field (did you mean {meant}?)"),
            None => "an unknown field".to_owned(),
        };
        let accepted = format_args!("one of {}", self.known_names());
        self.node
            .report_error(join(self.node.path(), name), found, accepted);
    }

    fn known_names(&self) -> String {
        let known = self.node.field().children();
        let known = known.filter(|field| !matches!(field.class, Class::Refused { .. }));
        known
            .map(|field| field.name())
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// What is accepted where nothing may be adapted.
pub(super) const STRICT: &str = "with --strict, what need not be adapted";

/// Why fields about the pod have no effect here.
const OF_THE_POD: &str = "concerns the pod, not the machine in it";

/// Values that say the same as an absent field for everything that the table refuses: `false`, an
/// empty list, an empty string.
fn is_vacuous(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}
