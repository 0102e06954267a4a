//! Which fields were read. A field that the table calls honoured and that nobody reads would be
//! ignored in silence, so debug builds (and with them all tests and fuzz targets) look.

use std::cell::RefCell;
use std::collections::HashSet;

use serde_json::Value;

use super::fields::{Class, Field};
use super::words::{is_unset, join};

/// Paths of the values that were read; always empty in release builds.
#[derive(Default)]
pub(super) struct Seen {
    paths: RefCell<HashSet<String>>,
}

impl Seen {
    /// The value at `path` is being read.
    pub(super) fn insert(&self, path: &str) {
        if cfg!(debug_assertions) {
            self.paths.borrow_mut().insert(path.to_owned());
        }
    }

    /// Nothing at `path` or below it is to be read.
    pub(super) fn insert_all(&self, path: &str, value: &Value) {
        if !cfg!(debug_assertions) {
            return;
        }
        self.insert(path);
        match value {
            Value::Object(map) => {
                let all = map.iter();
                all.for_each(|(name, value)| self.insert_all(&join(path, name), value));
            }
            Value::Array(items) => {
                let items = items.iter().enumerate();
                items.for_each(|(index, value)| {
                    self.insert_all(&format!("{path}[{index}]"), value);
                });
            }
            _ => {}
        }
    }

    /// Panics in debug builds if an honoured field below `value` was not read.
    pub(super) fn assert_complete(&self, path: &str, field: Field, value: &Value) {
        if !cfg!(debug_assertions) {
            return;
        }
        let read = matches!(field.class, Class::Honoured | Class::Adapted(_));
        if is_unset(value) || !read {
            return;
        }
        let seen = self.paths.borrow().contains(path);
        debug_assert!(seen, "{path} is honoured and was not read");
        match value {
            Value::Object(map) => {
                let children = map.iter().filter_map(|(name, value)| {
                    Some((join(path, name), field.child(name)?, value))
                });
                children.for_each(|(path, field, value)| self.assert_complete(&path, field, value));
            }
            Value::Array(items) => {
                let items = items.iter().enumerate();
                items.for_each(|(index, value)| {
                    self.assert_complete(&format!("{path}[{index}]"), field, value);
                });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fields::ROOT;
    use super::*;

    #[test]
    #[should_panic(expected = "spec.hostname is honoured and was not read")]
    fn a_field_that_nobody_reads_is_noticed() {
        let seen = Seen::default();
        ["", "spec", "metadata"]
            .iter()
            .for_each(|path| seen.insert(path));
        let document = json!({"spec": {"affinity": {}, "hostname": "x"}, "metadata": {}});
        seen.assert_complete("", ROOT, &document);
    }
}
